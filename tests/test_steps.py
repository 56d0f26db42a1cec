"""Recorded training steps against literal ones."""

import copy
import itertools
import random
import re
import time
import warnings
from contextlib import nullcontext

import numpy as np
import pyro
import pytest
import torch
from support import CONV, PATCHED, SMALL, load
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ngvae_pyro as ng
from ngvae_pyro import cli, machine
from ngvae_pyro.data import as_images
from ngvae_pyro.errors import Notice
from ngvae_pyro.specs import AdversarialSpec, ArdPriorSpec, FitSpec, MLPSpec, ModelSpec
from ngvae_pyro.training import steps
from ngvae_pyro.training import trainer as svi

# Of which a recording has fewer operations, and takes less time.
SHALLOW = MLPSpec(width=16, depth=1)
# Older versions of torch record some gradients as the formulas they are, and rounding grows.
EXACT = torch.__version__ >= "2.15"
PAIRS = [
    *[("normal_gamma", g) for g in ("relaxed", "mixture", "flat", "generalized", "score")],
    ("normal_gamma_joint", "relaxed"),
    *[("gaussian", g) for g in ("gaussian", "beta_27", "capacity", "beta_tc", "factor")],
    *[("gaussian", g) for g in ("dip_i", "dip_ii", "gamix", "gaussian_mixture", "epanechnikov")],
    # Its precisions are inferred after three steps of 16 images.
    pytest.param(ModelSpec(prior=ArdPriorSpec(codes=48)), "ard", id="ard-ard"),
]


@pytest.fixture(autouse=True)
def recorded_soon(monkeypatch):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 0)


@pytest.fixture(scope="module")
def data():
    return ng.sprites(n=64, seed=0)


def trained(pair, data, schedule=None, count=8, **settings):
    """A trainer after some steps of many."""
    model, guide = pair
    spec = FitSpec(**{"steps": 16, "batch_size": 16, "device": "cpu", **settings})
    schedule = schedule or guide.spec.schedule
    with machine.seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
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
    for a, b in zip(literal.model.buffers(), recorded.model.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_recorded_steps_are_the_literal_ones(data, model, guide):
    literal, recorded = (
        trained(load(data, model, guide, SHALLOW), data, fast=fast) for fast in (False, True)
    )
    assert_same(literal, recorded)


def test_the_exact_mixture_is_recorded_too(data):
    pairs = [load(data, guide="mixture") for _ in range(2)]
    schedule = pairs[0][1].spec.schedule.model_copy(update={"exact": 0.0})
    assert_same(
        *(trained(p, data, schedule, fast=f) for p, f in zip(pairs, (False, True), strict=True))
    )


@pytest.mark.parametrize("family", ["gaussian", "negative_binomial"])
def test_missing_values_are_recorded_too(family):
    x = torch.randint(9, (64, 12), generator=torch.Generator().manual_seed(0)).float()
    x[x == 8] = torch.nan
    seen = as_images(x, counts=family == "negative_binomial", missing=True)
    fits = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = ng.load_model(
            "normal_gamma", seen, latent_size=4, decoder=SHALLOW, likelihood={"family": family}
        )
        guide = ng.load_guide("relaxed", model, encoder=SHALLOW)
        fits.append(trained((model, guide), seen, fast=fast))
    assert_same(*fits)


@pytest.mark.slow
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


@pytest.mark.parametrize("network", [CONV, pytest.param(PATCHED, marks=pytest.mark.slow)])
def test_channels_last_is_the_same_within_float_error(data, network):
    literal, recorded, again = (
        trained(load(data, network=network), data, fast=fast) for fast in (False, True, True)
    )
    weights = [p for p in recorded.model.decoder.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights) and weights
    assert recorded.steps.program is not None and recorded.trace == again.trace
    assert np.allclose(literal.trace, recorded.trace, rtol=1e-4)


@pytest.mark.skipif(not EXACT, reason="forks decide by the last bit")
@pytest.mark.usefixtures("deaths")
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
    """Weighs its latents by how often it was called, as a warm-up of the KL does."""

    calls = 0

    def sample_latents(self):
        self.calls += 1
        with pyro.poutine.scale(scale=min(1.0, self.calls / 10)):
            return super().sample_latents()


class Own(torch.nn.Module):
    """Somebody's encoder: does something to the images before the encoder that was there."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x):
        return self.inner(self.change(x))


def counting(function):
    """A function of images and of the number of the call."""
    calls = itertools.count()
    return lambda x: function(x, next(calls))


def sometimes_brighter(seed):
    generator = np.random.default_rng(seed)
    return lambda x: x * generator.uniform(0.9, 1.1)


def noisy(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: x + 0.1 * torch.rand(x.shape, generator=generator)


def blurred(x):
    """In NumPy, of the images themselves."""
    return torch.from_numpy(np.roll(x.detach().numpy(), 1, -1))


# Something other than tensor operations, made anew for each training; and what is said of it.
READS, OTHER = r"test_steps.py:\d+ reads the value of a tensor", r"at test_steps.py:\d+ takes"
KINDS = {
    "numpy": (lambda: blurred, READS),
    "asarray": (lambda: lambda x: x * np.asarray(x).max().item(), READS),
    "tolist": (lambda: lambda x: x / max(x.flatten().tolist()), READS),
    "float": (lambda: lambda x: x - float(x.mean()), READS),
    "branch": (lambda: lambda x: x if x[0, 0, 0, 0] > 0.5 else 1.0 - x, READS),
    "equal": (lambda: lambda x: x if torch.equal(x, x[:1]) else 1.0 - x, READS),
    "random": (
        lambda: lambda x: x if random.random() < 0.5 else 1.0 - x,
        r"test_steps.py:\d+ draws from Python's random",
    ),
    "numpy.random": (
        lambda: lambda x: x * np.random.uniform(0.9, 1.1),
        r"test_steps.py:\d+ draws from numpy.random",
    ),
    "torch.Generator": (
        lambda: noisy(0),
        r"test_steps.py:\d+ draws from a generator of its own",
    ),
    "numpy.Generator": (lambda: sometimes_brighter(0), OTHER),
    "time": (lambda: lambda x: x + 0.0 * (x * time.time()), OTHER),
    "count": (lambda: counting(lambda x, n: x * (1.0 + n / 100)), OTHER),
    "slow count": (lambda: counting(lambda x, n: x * (1.0 + n * 1e-9)), OTHER),
    "count by numpy": (
        lambda: counting(lambda x, n: x * torch.from_numpy(np.float32([1.0 + n / 100]))),
        r"a tensor at test_steps.py:\d+ that is no result of a recorded operation has other values",
    ),
    "count in a tensor": (
        lambda: counting(lambda x, n: x * torch.tensor(1.0 + n / 100)),
        r"a tensor at test_steps.py:\d+ that is no result of a recorded operation has other values",
    ),
    "count in a branch": (
        lambda: counting(lambda x, n: x * 0.9 if n % 2 else x + 0.1),
        r"aten.\w+.Tensor at test_steps.py:\d+ in one step is aten.\w+.Tensor in the next",
    ),
    "count of operations": (
        lambda: counting(lambda x, n: x * 1.0 if n % 2 else x),
        r"at test_steps.py:\d+ in one step is",
    ),
}


def with_own_encoder(data, change):
    model, guide = load(data, "gaussian", "gaussian", SHALLOW)
    guide.encoder = Own(guide.encoder, change)
    return model, guide


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_tensor_is_trained_literally(data, kind):
    make, said = KINDS[kind]
    trainers = []
    for fast in (False, True):
        random.seed(0)
        np.random.seed(0)
        pair = with_own_encoder(data, make())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainers.append(trained(pair, data, fast=fast, learning_rate=1e-3))
    literal, fast = trainers
    (notice,) = (w.message for w in caught)
    assert isinstance(notice, Notice)
    assert re.search(f"^training goes step by step, unrecorded: .*{said}", str(notice))
    assert not fast.steps.fast and fast.steps.program is None
    assert fast.trace == literal.trace
    for a, b in zip(literal.parameters, fast.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_model_that_counts_its_calls_is_trained_literally(data):
    """To the last bit, whatever of it is looked at: each call is one of the training."""
    fits = []
    for fast in (False, True):
        model, guide = load(data)
        model.__class__ = Counting
        spec = FitSpec(steps=14, batch_size=16, monitor_every=4, device="cpu", fast=fast)
        said = (
            pytest.warns(Notice, match=r"model\.calls changes in a step and is not a tensor")
            if fast
            else nullcontext()
        )
        with said:
            fits.append(ng.fit(model, guide, data, spec, progress=False))
    literal, fast = fits
    assert literal.history == fast.history
    assert literal.model.calls == fast.model.calls


def test_what_changes_later_is_found_by_comparison(data):
    """To the last bit: a number that was the same in both recordings, and differs by 1e-6."""
    pair = with_own_encoder(data, counting(lambda x, n: x * (1.0 + n // 5 * 1e-6)))
    said = (
        r"the (loss of a batch|gradient of (model|guide)\S+) is .*; model, guide or objective "
        r"have changed in something that is not a tensor; 2 steps ago that was not yet so"
    )
    with pytest.warns(Notice, match=said):
        trainer = trained(pair, data, learning_rate=1e-3)
    assert not trainer.steps.fast and trainer.steps.program is None


def test_steps_are_compared_often_at_first_and_then_rarely(data, monkeypatch):
    monkeypatch.setattr(steps, "COMPARED_EVERY", 16)
    model, guide = load(data)
    spec = FitSpec(steps=60, batch_size=16, device="cpu")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(trainer.step))
    trainer = svi.Trainer(model, guide, data, spec, guide.spec.schedule)
    with machine.seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
        for _ in range(40):
            trainer.train_step()
    # Two to warm up, two recordings, and then at so many steps after the first of them.
    assert calls == [0, 1, 2, 3, *(2 + n for n in (2, 4, 8, 16, 32))]


def test_a_comparison_changes_nothing(data):
    """Not what a step writes to, buffers or not, and not the noise."""
    trainers = []
    for fast in (False, True):
        memory = torch.zeros(())
        pair = with_own_encoder(data, lambda x, memory=memory: x + 0.01 * memory.add_(x.mean()))
        pair[1].encoder.norm = torch.nn.BatchNorm2d(3)
        pair[1].encoder.inner = torch.nn.Sequential(pair[1].encoder.norm, pair[1].encoder.inner)
        trainers.append(trained(pair, data, count=12, fast=fast, learning_rate=1e-3))
        trainers[-1].memory = memory
    assert_same(*trainers)
    literal, fast = trainers
    assert torch.equal(literal.memory, fast.memory)
    for a, b in zip(literal.guide.buffers(), fast.guide.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_model_that_reads_values_is_trained_literally(data):
    model, guide = load(data)
    plain = trained((copy.deepcopy(model), guide), data, fast=False)
    model, guide = load(data)
    model.__class__ = Reading
    with pytest.warns(Notice, match=r"^training goes step by step.*test_steps.py:\d+ reads"):
        literal = trained((model, guide), data)
    assert not literal.steps.fast and literal.trace == plain.trace


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
    # Computed from the images, once.
    found = torch.zeros(data.image_shape), 0.1
    monkeypatch.setattr("ngvae_pyro.likelihoods._mean_and_resolution", lambda *_, **options: found)
    # Fake modules cannot be moved, and are there already.
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *args, **kwargs: module)
    cuda, store = torch.device("cuda"), pyro.get_param_store().scope()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, store, pyro.validation_enabled(False):
        with cuda:
            pair = load(data.image_shape, model, guide)
            # That too is computed from the images.
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
                step._step(step.gradients)
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


@pytest.mark.parametrize("network", [SMALL, pytest.param(PATCHED, marks=pytest.mark.slow)])
def test_trunks_may_compute_in_bfloat16(data, network):
    halves = [
        trained(load(data, network=network), data, count=6, fast=fast, network_dtype="bfloat16")
        for fast in (False, True)
    ]
    if network is SMALL:
        assert_same(*halves)
    whole = trained(load(data, network=network), data, count=6)
    assert whole.trace != halves[0].trace
    (loss, norm), (half_loss, half_norm) = whole.trace[0], halves[0].trace[0]
    assert half_loss == pytest.approx(loss, rel=0.02)
    # A norm over as few as four channels passes on more of the rounding.
    assert half_norm == pytest.approx(norm, rel=0.02 if network is SMALL else 0.1)
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
