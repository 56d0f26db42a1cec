"""Recorded training steps against literal ones."""

import copy
import warnings

import numpy as np
import pyro
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ngvae_pyro as ng
from ngvae_pyro import cli, steps, svi
from ngvae_pyro.errors import Notice
from ngvae_pyro.specs import AdversarialSpec, FitSpec

SMALL = {"width": 16, "depth": 2}
CONV = {"kind": "conv", "channels": 4, "width": 16}
# Older versions of torch record some gradients as the formulas they are, and rounding grows.
EXACT = torch.__version__ >= "2.15"
PAIRS = [
    *[("normal_gamma", g) for g in ("relaxed", "mixture", "flat", "generalized", "score")],
    ("normal_gamma_joint", "relaxed"),
    *[("gaussian", g) for g in ("gaussian", "beta_27", "capacity", "beta_tc", "factor")],
    *[("gaussian", g) for g in ("dip_i", "dip_ii", "gamix", "gaussian_mixture", "epanechnikov")],
]


@pytest.fixture(autouse=True)
def recorded_soon(monkeypatch):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 0)


@pytest.fixture(scope="module")
def data():
    return ng.sprites(n=64, seed=0)


def load(data, model="normal_gamma", guide="relaxed", network=SMALL):
    torch.manual_seed(0)
    model = ng.load_model(model, data, decoder=network, latent_size=4)
    return model, ng.load_guide(guide, model, encoder=network)


def trained(pair, data, schedule=None, count=8, **settings):
    """A trainer after some steps of many."""
    model, guide = pair
    spec = FitSpec(**{"steps": 16, "batch_size": 16, "device": "cpu", **settings})
    schedule = schedule or guide.spec.schedule
    with svi.seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
        trainer = svi.Trainer(model, guide, data, spec, schedule)
        trainer.trace = []
        for _ in range(count):
            trainer.train_step()
            trainer.trace.append(trainer.steps.latest.tolist())
    return trainer


def assert_same(literal, recorded):
    assert literal.steps.program is None and recorded.steps.program is not None
    if not EXACT:
        assert np.allclose(literal.trace[:5], recorded.trace[:5], rtol=1e-2)
        return
    assert literal.trace == recorded.trace
    for a, b in zip(literal.parameters, recorded.parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_recorded_steps_are_the_literal_ones(data, model, guide):
    literal, recorded = (
        trained(load(data, model, guide), data, fast=fast) for fast in (False, True)
    )
    assert_same(literal, recorded)


def test_the_exact_mixture_is_recorded_too(data):
    pairs = [load(data, guide="mixture") for _ in range(2)]
    schedule = pairs[0][1].spec.schedule.model_copy(update={"exact": 0.0})
    assert_same(
        *(trained(p, data, schedule, fast=f) for p, f in zip(pairs, (False, True), strict=True))
    )


def test_particles_and_the_closed_kl_are_recorded_too(data):
    for settings in ({"particles": 3}, {"elbo": "TraceMeanField_ELBO"}):
        pairs = [load(data) for _ in range(2)]
        fits = (
            trained(p, data, fast=f, **settings) for p, f in zip(pairs, (False, True), strict=True)
        )
        assert_same(*fits)


def test_what_is_switched_on_is_recorded_anew(data):
    adversarial = AdversarialSpec(begin=0.4, channels=4)
    fits = [
        trained(load(data), data, count=14, adversarial=adversarial, fast=fast)
        for fast in (False, True)
    ]
    assert_same(*fits)
    before = trained(load(data), data, count=5, adversarial=adversarial)
    assert len(fits[1].steps.program) > len(before.steps.program)


def test_channels_last_is_the_same_within_float_error(data):
    literal, recorded = (
        trained(load(data, network=CONV), data, fast=fast) for fast in (False, True)
    )
    weight = recorded.model.decoder.trunk[-1].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(literal.trace, recorded.trace, rtol=1e-4)


@pytest.mark.skipif(not EXACT, reason="forks decide by the last bit")
def test_a_whole_fit_is_the_same(data):
    """Forks, looks and what else sets the state back, with the recording held throughout."""
    histories = []
    for fast in (False, True):
        model, guide = load(data)
        spec = FitSpec(steps=60, batch_size=16, monitor_every=20, device="cpu", fast=fast)
        moves = [
            {"kind": "birth", "at": 0.3, "steps": 10},
            {"kind": "death", "at": 0.6, "steps": 6},
        ]
        schedule = ng.specs.parse(type(guide.spec.schedule), {"moves": moves}, "test")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit = ng.fit(model, guide, data, spec, schedule=schedule, progress=False)
        histories.append((fit.history, fit.moves))
    assert histories[0] == histories[1]


def test_short_trainings_are_not_recorded(data, monkeypatch):
    monkeypatch.setattr(steps, "PAYS_FROM", 300)
    assert trained(load(data), data).steps.program is None


class Reading(ng.model.NormalGammaVAE):
    """Looks at what it has drawn."""

    def sample_latents(self):
        z = super().sample_latents()
        return z if z.sum() > 0 else 1.0 * z


class Counting(ng.model.NormalGammaVAE):
    """Weighs its images by how often it was called."""

    calls = 0

    def forward(self, x=None, size=1):
        self.calls += 1
        with pyro.poutine.scale(scale=float(self.calls)):
            return super().forward(x, size)


def test_a_model_that_reads_values_is_trained_literally(data):
    model, guide = load(data)
    plain = trained((copy.deepcopy(model), guide), data, fast=False)
    model, guide = load(data)
    model.__class__ = Reading
    with pytest.warns(Notice, match=r"^training goes step by step.*test_steps.py:\d+ reads"):
        literal = trained((model, guide), data)
    assert not literal.steps.fast and literal.trace == plain.trace


def test_a_model_that_changes_by_itself_is_found_out(data):
    model, guide = load(data)
    model.__class__ = Counting
    trainer = trained((model, guide), data)
    with pytest.warns(UserWarning, match=r"as recorded, and .* now; model, guide or objective"):
        trainer.look()
    assert not trainer.steps.fast and trainer.steps.program is None
    # Once; then there is nothing left to verify.
    trainer.look()


@pytest.mark.parametrize("fast", [False, True])
def test_a_loss_that_is_not_finite_changes_nothing(data, fast):
    trainer = trained(load(data), data, fast=fast, learning_rate=1e-3)
    before = [p.clone() for p in trainer.parameters]
    state = trainer.state()["optimizer"]
    with torch.no_grad():
        trainer.batches.resident = trainer.batches.resident * float("nan")
    if fast:
        # The recording holds the images; a constant of the model is held by both.
        trainer.model.likelihood.log_scale.fill_(float("nan"))
    with pytest.raises(steps.NonFiniteLoss, match="non-finite loss at step 8: loss nan"):
        trainer.train_step()
    for p, q in zip(trainer.parameters, before, strict=True):
        assert torch.equal(p, q)
    for own, was in zip(trainer.state()["optimizer"], state, strict=True):
        assert all(torch.equal(own[name], was[name]) for name in was)
    with pytest.raises(steps.NonFiniteLoss, match="at step 8"):
        trainer.steps.check()


def test_gradients_are_clipped_to_the_norm(data):
    free, clipped = (
        trained(load(data), data, count=1, clip_norm=norm, learning_rate=1e-3)
        for norm in (1e9, 0.5)
    )
    norm = free.trace[0][1]
    assert norm > 0.5
    moments = (t.optimizer.state[t.parameters[0]]["exp_avg"] for t in (free, clipped))
    assert torch.allclose(next(moments) * 0.5 / norm, next(moments), rtol=1e-4)


class Watch(TorchDispatchMode):
    """Lists the copies between devices; reading a value is an error of fake tensors by itself.

    Not those of single numbers: a recording computes once what follows from numbers alone.
    """

    def __init__(self):
        super().__init__()
        self.copies, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors if t.dim()}) > 1:
            self.copies.append(str(func))
        self.count += 1
        return out


@pytest.mark.skipif(not EXACT, reason="fake CUDA tensors of older versions ask for the driver")
@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_a_step_on_cuda_neither_waits_nor_copies(data, model, guide, monkeypatch):
    """What a CUDA graph asks for, on tensors that say they are on CUDA and have no data."""
    monkeypatch.setattr(svi, "resolve_device", lambda name: torch.device("cuda", 0))
    # Fake modules cannot be moved, and are there already.
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *args, **kwargs: module)
    cuda, store = torch.device("cuda"), pyro.get_param_store().scope()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, store, pyro.validation_enabled(False):
        with cuda:
            pair = load(data.image_shape, model, guide)
            # Computed from the images, once.
            schedule = pair[1].spec.schedule.model_copy(update={"signal_nats": 0.0})
            spec = FitSpec(steps=20, batch_size=16, device="cuda")
            trainer = svi.Trainer(*pair, data, spec, schedule)
        step = trainer.steps
        # Autograd asks the driver for the device; Adam's kernel has no fake one.
        monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
        monkeypatch.setattr(
            step,
            "gradients",
            lambda x: (trainer.batch_loss(x).detach(), *map(torch.zeros_like, trainer.parameters)),
        )
        for exact in {False, guide == "mixture"}:
            pair[1].exact = exact
            with Watch() as watch:
                step._step()
            assert watch.count > 100
            assert watch.copies == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("guide", ["relaxed", "mixture"])
def test_a_captured_step_is_the_literal_one(data, guide):
    literal, captured = (
        trained(load(data, guide=guide), data, count=14, device="cuda", fast=fast)
        for fast in (False, True)
    )
    assert captured.steps.graph is not None
    assert np.allclose(literal.trace, captured.trace, rtol=1e-3)


def test_the_command_line_shows_a_notice_as_one_line(capsys):
    cli._show_warning(Notice("training goes on"), Notice, "steps.py", 1)
    cli._show_warning(FutureWarning("soon"), FutureWarning, "torch.py", 2)
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "ngvae: training goes on" and others[0] == "torch.py:2: FutureWarning: soon"


def test_trunks_may_compute_in_bfloat16(data):
    halves = [
        trained(load(data), data, count=6, fast=fast, network_dtype="bfloat16")
        for fast in (False, True)
    ]
    assert_same(*halves)
    whole = trained(load(data), data, count=6)
    assert whole.trace != halves[0].trace
    assert np.allclose(whole.trace[0], halves[0].trace[0], rtol=0.02)
    seen = {}
    encoder, decoder = halves[0].guide.encoder, halves[0].model.decoder
    layers = {
        "head": encoder.head,
        "up": encoder.trunk,
        "stem": decoder.stem,
        "down": decoder.trunk,
    }
    for name, layer in layers.items():
        layer.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.dtype}))
    encoder(torch.rand(2, *data.image_shape))
    assert decoder(torch.rand(2, 4)).dtype is torch.float32
    half, full = torch.bfloat16, torch.float32
    assert seen == {"head": full, "up": half, "stem": full, "down": half}


def test_after_a_fit_networks_are_as_they_were(data):
    model, guide = load(data, network=CONV)
    spec = FitSpec(steps=3, batch_size=16, device="cpu", network_dtype="bfloat16")
    ng.fit(model, guide, data, spec, progress=False)
    assert model.decoder.compute_dtype is guide.encoder.compute_dtype is torch.float32
    assert all(p.is_contiguous() for p in model.parameters())
