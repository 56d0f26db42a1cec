"""Networks of a user's own between the package's linear layers at the latents."""

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from support import cut, ngvae
from torch import nn

import ngvae_pyro as ng
from ngvae_pyro import machine, runs
from ngvae_pyro.data import as_images
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.nn import OwnTrunk
from ngvae_pyro.specs import FitSpec, OwnSpec, RunSpec, ScheduleSpec
from ngvae_pyro.training import lessons, memory, steps
from ngvae_pyro.training import trainer as svi

SHAPE = (1, 8, 8)
STILL = ScheduleSpec()
SHORT = {"steps": 8, "batch_size": 8, "device": "cpu", "progress": False}


class Pictures(nn.Module):
    """With a view that needs the usual layout, a weight that is used twice, and dropout."""

    def __init__(self, image_shape, width, channels=4):
        super().__init__()
        self.cells = nn.Linear(width, channels * 4 * 4)
        self.dropout = nn.Dropout(0.1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.again = nn.Conv2d(channels, channels, 3, padding=1)
        self.again.weight = self.conv.weight
        self.out = nn.ConvTranspose2d(channels, image_shape[0], 2, stride=2)

    def forward(self, h):
        h = self.dropout(self.cells(h)).view(len(h), -1, 4, 4)
        h = self.conv(h).relu()
        return self.out(self.again(h.view(len(h), -1).view(h.shape)).relu())


class Features(nn.Sequential):
    """Of modules of torch alone, one of which learns its number of inputs."""

    def __init__(self, image_shape, width):
        conv = nn.Conv2d(image_shape[0], 4, 4, stride=2, padding=1)
        super().__init__(conv, nn.GroupNorm(1, 4), nn.SiLU(), nn.Flatten(), nn.LazyLinear(width))


def of_any_number(image_shape, width):
    """Not flat, and of another number of features than the width."""
    return nn.Conv2d(image_shape[0], 3, 3)


@pytest.fixture(scope="module")
def images():
    random = torch.Generator().manual_seed(0)
    return as_images(torch.rand(60, *SHAPE, generator=random))


def pair(images, decoder=Pictures, encoder=Features):
    torch.manual_seed(0)
    small = {"width": 16} if isinstance(decoder, type) else {}
    model = ng.load_model(
        "normal_gamma", images, latent_size=3, decoder=OwnSpec(factory=decoder, **small)
    )
    return model, ng.load_guide("relaxed", model, encoder=OwnSpec(factory=encoder, width=16))


def state(fit):
    both = {**fit.model.state_dict(), **fit.guide.state_dict()}
    return {name: value.clone() for name, value in both.items()}


def test_the_latents_own_layers_are_around_the_module(images):
    model, guide = pair(images)
    decoder, encoder = model.decoder.eval(), guide.encoder
    assert isinstance(decoder.trunk, Pictures) and isinstance(encoder.trunk, Features)
    z, x = torch.randn(2, 5, 3), torch.rand(5, *SHAPE)
    drawn = decoder.trunk(decoder.stem(z[1]))
    torch.testing.assert_close(decoder(z)[1], decoder.loc + decoder.unit * drawn)
    features = encoder.trunk((x - encoder.loc) / encoder.unit)
    torch.testing.assert_close(torch.cat(encoder(x), -1), encoder.head(features))
    guide = ng.load_guide("relaxed", model, encoder=of_any_number)
    assert guide.encoder.head.in_features == 3 * 6 * 6
    assert [part.shape for part in guide.encoder(x)] == [(5, 3), (5, 3)]


def test_a_class_is_known_by_its_full_name_and_a_function_is_kept():
    name = "test_own_networks:Pictures"
    for decoder in (Pictures, {"kind": "own", "factory": name}, OwnSpec(factory=Pictures)):
        assert ng.ModelSpec(decoder=decoder).decoder == OwnSpec(factory=name)
    spec = OwnSpec(factory=Pictures, options={"channels": 2, "sides": [1, (2.0, "a")]}, width=8)
    assert spec.options["sides"] == (1, (2.0, "a"))
    assert OwnSpec(**spec.model_dump(mode="json")) == spec
    kept = OwnSpec(factory=of_any_number)
    assert kept.factory is of_any_number
    assert kept.model_dump(mode="json")["factory"] == "test_own_networks:of_any_number"


def test_options_go_to_the_module():
    spec = OwnSpec(factory=Pictures, width=8, options={"channels": 2})
    model = ng.load_model("normal_gamma", SHAPE, decoder=spec)
    assert model.decoder.stem.out_features == 8 and model.decoder.trunk.conv.in_channels == 2


class Centred(nn.Module):
    """Normalises over the images by hand."""

    def __init__(self, image_shape, width):
        super().__init__()
        self.linear = nn.Linear(width, 64)

    def forward(self, h):
        h = self.linear(h)
        return h - h.mean(0)


def drawing(*layers):
    return lambda image_shape, width: nn.Sequential(nn.Linear(width, 64), *copy.deepcopy(layers))


class Counting(nn.Linear):
    def __init__(self, image_shape, width):
        super().__init__(width, 64)

    def get_extra_state(self):
        return {"calls": 0}


INSTANCES = nn.InstanceNorm1d(1, track_running_stats=True)
REFUSED = {
    "a module": (nn.Linear(3, 64), "factory: expected package.module:Name, or a class or function"),
    "no name": ("mine.Decoder", "factory: expected package.module:Name, got 'mine.Decoder'"),
    "a file": ("../mine:Decoder", "factory: expected package.module:Name, got '../mine:Decoder'"),
    "no module": ("no_such.nets:Mine", "cannot import no_such.nets: No module named 'no_such'"),
    "no class": ("torch.nn:Mine", "expected a class of torch.nn.Module as torch.nn:Mine, got none"),
    "a function": ("os:getcwd", "expected a class of torch.nn.Module as os:getcwd, got a"),
    "another class": (
        "pathlib:Path",
        "expected a class of torch.nn.Module as .*, got the class Path",
    ),
    "arguments": (lambda image_shape: None, "does not take these: too many positional arguments"),
    "None": (lambda image_shape, width: None, "expected a torch.nn.Module, got None"),
    "too few": (nn.Conv2d, "not take these: missing a required argument: 'kernel_size'"),
    "its error": (nn.Linear, "Linear: cannot be made: TypeError: "),
    "inputs": (lambda s, w: nn.Linear(w + 1, 64), r"an input of shape \(2, 256\): RuntimeError: "),
    "no tensors": (Counting, r"Counting: expected tensors in its state_dict\(\), got _extra_state"),
    "images": (lambda s, w: nn.Linear(w, 63), r"images \(B, 1, 8, 8\), got \(B, 63\)"),
    "turned": (drawing(nn.Unflatten(1, (4, 16))), r"images \(B, 1, 8, 8\), got \(B, 4, 16\)"),
    "batch": (drawing(nn.BatchNorm1d(64)), "1 is a BatchNorm1d, and the ELBO of an image must not"),
    "instances": (drawing(nn.Unflatten(1, (1, 64)), INSTANCES), "2 is a InstanceNorm1d, and the"),
    "by hand": (Centred, "gives something else for an input alone, and the ELBO of an image"),
    "no batch": (drawing(nn.Flatten(0)), r"expected \(B, ...\) for each B inputs, got \(128,\)"),
    "double": (lambda s, w: nn.Linear(w, 64).double(), "fails at an input .*same dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_line(name):
    factory, line = REFUSED[name]
    with pytest.raises(UserError, match=line) as caught:
        ng.load_model("normal_gamma", SHAPE, decoder={"kind": "own", "factory": factory})
    assert "decoder" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "decoder.factory: expected a value, got none"),
        ({"options": {"a b": 1}}, "decoder.options: expected names of arguments, got 'a b'"),
        ({"options": {"a": [1, None]}}, "decoder.options: a: expected true or false, a finite num"),
        ({"options": {"a": float("nan")}}, "decoder.options: a: .* got nan"),
        ({"options": {"chanels": 2}}, "unexpected keyword argument 'chanels'"),
        ({"layers": 2}, "unknown key 'decoder.layers'"),
    ],
)
def test_mistakes_in_its_keys_are_one_line(values, line):
    values = {"kind": "own", **({"factory": Pictures} if values else {}), **values}
    with pytest.raises(UserError, match=line):
        ng.load_model("normal_gamma", SHAPE, decoder=values)


def test_an_encoder_may_give_any_number_of_features_but_some():
    model = ng.load_model("normal_gamma", SHAPE)
    with pytest.raises(UserError, match=r"guide.encoder: <lambda>: expected \(B, ...\)"):
        ng.load_guide("relaxed", model, encoder=lambda image_shape, width: nn.Flatten(0))


def test_the_check_draws_nothing_from_torchs_generator_and_leaves_the_modes():
    def still(image_shape, width):
        module = Pictures(image_shape, width)
        module.dropout.eval()
        return module

    torch.manual_seed(0)
    nn.Linear(15, 256), still(SHAPE, 256)
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    trunk = ng.load_model("normal_gamma", SHAPE, decoder=still).decoder.trunk
    assert torch.equal(torch.get_rng_state(), expected)
    assert trunk.training and not trunk.dropout.training
    assert all(p.grad is None for p in trunk.parameters())


# Training -----------------------------------------------------------------------------------------


def test_births_deaths_and_rotations_keep_the_reconstruction(images):
    model, guide = pair(images)
    for module in (model, guide):
        module.eval()
    x = images.images.float()
    with torch.no_grad():
        before = guide.codes(x).loc
        drawn = model.decoder(before)
        turned, _ = torch.linalg.qr(torch.randn(2, 2))
        latents = torch.tensor([0, 2])
        guide.recombine(model.decoder, latents, turned, torch.full((2,), 100.0))
        loc = guide.codes(x).loc
        torch.testing.assert_close(loc[:, latents], before[:, latents] @ turned.T)
        torch.testing.assert_close(model.decoder(loc), drawn, atol=1e-5, rtol=1e-4)
        guide.switch(model.decoder, 1, True, loc[:, 1])
        born = guide.codes(x)
        assert born.loc[:, 1].std().item() == pytest.approx(1.0, abs=1e-4)
        torch.testing.assert_close(model.decoder(born.loc), drawn, atol=1e-5, rtol=1e-4)
        mean = born.loc.clone()
        mean[:, 1] = born.loc[:, 1].mean()
        without = model.decoder(mean)
        guide.switch(model.decoder, 1, False, born.loc[:, 1])
        assert not guide.codes(x).loc[:, 1].any()
        torch.testing.assert_close(model.decoder(guide.codes(x).loc), without, atol=1e-5, rtol=1e-4)


MOVES = tuple({"kind": kind, "at": 0.3, "steps": 3} for kind in ("birth", "growth", "death"))


def test_a_resumed_training_is_the_uninterrupted_one(images, tmp_path, monkeypatch, deaths):
    def train(folder, after=None, resume=False):
        cut(monkeypatch, after)
        model, guide = pair(images)
        schedule = guide.spec.schedule
        values = schedule.model_dump(exclude_unset=True) | {"moves": MOVES}
        keep = ng.Checkpoints(tmp_path / folder, every=5)
        how = {**SHORT, "steps": 24, "checkpoints": keep, "resume": resume}
        return ng.fit(model, guide, images, schedule=type(schedule)(**values), **how)

    whole = train("whole")
    assert whole.extra_steps > 0 and whole.model.decoder.trunk.conv.weight is (
        whole.model.decoder.trunk.again.weight
    )
    with pytest.raises(Interrupted):
        train("parts", after=13)
    parts = train("parts", resume=True)
    assert parts.history == whole.history and parts.moves == whole.moves
    left, right = state(parts), state(whole)
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_what_is_held_still_stays_as_it_is(images):
    def trained_before(image_shape, width):
        module = Features(image_shape, width)
        module[0].requires_grad_(False)
        return module

    model, guide = pair(images, encoder=trained_before)
    before = [p.clone() for p in guide.encoder.trunk.parameters()]
    ng.fit(model, guide, images, schedule=STILL, **SHORT)
    same = [
        torch.equal(p, q) for p, q in zip(guide.encoder.trunk.parameters(), before, strict=True)
    ]
    assert same == [True, True, False, False, False, False]
    # Nor does a lesson teach it.
    trainer = svi.Trainer(model, guide, images, FitSpec(steps=20, device="cpu"), STILL)
    lessons.teach(trainer, images.images, torch.zeros(len(images), 3))
    assert trainer.optimizer.state.keys() <= {p for p in guide.parameters() if p.requires_grad} | {
        *model.parameters()
    }
    assert torch.equal(next(guide.encoder.trunk.parameters()), before[0])


def test_dropout_acts_in_steps_and_not_in_looks(images):
    fit = ng.fit(*pair(images), images, schedule=STILL, **SHORT)
    assert torch.equal(*(diagnostics.reconstruct(fit, images.images[:4].float()) for _ in "ab"))
    z = torch.zeros(2, 3)
    assert not torch.equal(fit.model.decoder(z), fit.model.decoder(z))


def test_the_held_out_likelihood_differentiates_it(images):
    fit = ng.fit(*pair(images), images, schedule=STILL, **SHORT)
    assert np.isfinite(ng.log_likelihood(fit, images.subset(slice(0, 2)), draws=25).values).all()


def test_the_estimator_takes_classes(images):
    vae = ng.NGVAE(2, decoder=Pictures, encoder=Features, steps=2, random_state=0, device="cpu")
    vae.fit(images.images.numpy())
    assert isinstance(vae.model_.decoder.trunk, Pictures)
    assert isinstance(vae.guide_.encoder.trunk, Features)


# Recorded steps -----------------------------------------------------------------------------------

CALLS = {"count": 0}


class Alternating(nn.Module):
    """Does something else in each call, which none of its own attributes tells."""

    def __init__(self, image_shape, width):
        super().__init__()
        self.linear = nn.Linear(width, 64)

    def forward(self, h):
        CALLS["count"] += self.training
        return self.linear(h).sin() if CALLS["count"] % 5 < 4 else self.linear(h)


def hooked(image_shape, width):
    module = nn.Linear(width, 64)
    module.register_forward_hook(lambda module, inputs, output: output)
    return module


def replaced(image_shape, width):
    module = nn.Linear(width, 64)
    module.forward = lambda h: h[:, :64]
    return module


STEADY = {
    "of torch alone": (drawing(nn.SiLU(), nn.Linear(64, 64)), True),
    "only said what it is made of": (
        type(
            "Own",
            (nn.Linear,),
            {"__init__": (lambda self, image_shape, width: nn.Linear.__init__(self, width, 64))},
        ),
        True,
    ),
    "its own forward": (Pictures, False),
    "inside": (lambda s, w: nn.Sequential(nn.Linear(w, 256), Pictures(s, 256)), False),
    "a hook": (hooked, False),
    "another forward": (replaced, False),
}


@pytest.mark.parametrize("name", STEADY)
def test_only_what_is_known_is_steady(name):
    factory, steady = STEADY[name]
    assert ng.load_model("normal_gamma", SHAPE, decoder=factory).decoder.steady is steady
    spec = OwnSpec(factory=factory, recorded=True)
    assert ng.load_model("normal_gamma", SHAPE, decoder=spec).decoder.steady


def trained(images, monkeypatch, decoder, **settings):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 0)
    monkeypatch.setattr(svi, "PAYS_FROM", 0)
    monkeypatch.setitem(CALLS, "count", 0)
    programs = []
    monkeypatch.setattr(svi.Trainer, "heed", lambda t, now=False: programs.append(t.steps.program))
    model, guide = pair(images, decoder=decoder)
    fit = ng.fit(model, guide, images, schedule=STILL, **{**SHORT, "steps": 12, **settings})
    return state(fit), [program for program in programs if program is not None]


def test_what_differs_from_step_to_step_is_trained_as_without_recordings(images, monkeypatch):
    plain, _ = trained(images, monkeypatch, Alternating, fast=False)
    with pytest.warns(Notice, match="unrecorded: a network of your own may do something else"):
        fast, programs = trained(images, monkeypatch, Alternating)
    assert not programs
    assert all(torch.equal(fast[name], plain[name]) for name in plain)


def test_modules_of_torch_alone_are_recorded(images, monkeypatch):
    decoder = drawing(nn.SiLU(), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 1, 3, padding=1))
    plain, _ = trained(images, monkeypatch, decoder, fast=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast, programs = trained(images, monkeypatch, decoder)
    assert programs
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, atol=1e-4, rtol=1e-3)


def test_a_short_training_says_nothing(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ng.fit(*pair(images), images, schedule=STILL, **SHORT)


def test_a_checkpoint_of_recorded_steps_goes_on_unrecorded_where_these_are_not_safe(images):
    model, guide = pair(images)
    spec = FitSpec(steps=8, batch_size=8, device="cpu")
    trainer = svi.Trainer(model, guide, images, spec, STILL)
    trainer.steps.set_state({"fast": True, "recorded": True, "since": 5}, 3)
    assert not trainer.steps.fast and not trainer.steps.had_recording


# Memory -------------------------------------------------------------------------------------------


def run_spec(**networks):
    model = ng.ModelSpec(latent_size=3, decoder=OwnSpec(factory=Pictures, width=16, **networks))
    return RunSpec(model=model, fit=FitSpec(batch_size=8, device="cpu"))


def test_its_numbers_are_counted(monkeypatch):
    def reads(image_shape, width):
        # As some do that have another rate of dropout in each layer.
        rates = torch.linspace(0, 0.5, 2).tolist()
        return nn.Sequential(nn.Linear(width, 64), nn.Dropout(rates[1]), nn.ReLU())

    spec = run_spec()
    sizes = {}
    monkeypatch.setattr(memory, "check", lambda what, needed, *_: sizes.update({what: needed}))
    before = torch.get_rng_state()
    memory.check_pair(spec, SHAPE, 60)
    memory.check_pair(run_spec(options={"channels": 40}), SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    small, large = sizes.values()
    assert large > 4 * 2 * 9 * 40**2
    own = OwnTrunk(spec.model.decoder, "x", SHAPE, (16,))
    # Its input, 64 cells, twice what goes through a relu, and what it gives to the last layer.
    assert 16 + 64 < own.kept < 10 * 64
    memory.check_pair(RunSpec(model=ng.ModelSpec(decoder=OwnSpec(factory=reads))), SHAPE, 60)
    assert small > 4 * 8 * own.kept


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "there", lambda device="cpu": 2.0**20)
    with pytest.raises(UserError, match="expected something that fits into"):
        memory.check_pair(run_spec(options={"channels": 200}), SHAPE, 60)


# Run folders --------------------------------------------------------------------------------------

MODULE = """
from torch import nn


class Pictures(nn.Module):
    def __init__(self, image_shape, width, channels=2):
        super().__init__()
        self.cells = nn.Linear(width, channels * 64)
        self.out = nn.Conv2d(channels, 1, 1)
        self.channels = channels

    def forward(self, h):
        return self.out(self.cells(h).view(len(h), self.channels, 8, 8))
"""
TOML = """
latent_size = 2

[decoder]
kind = "own"
factory = "mine.nets:Pictures"
width = 8

[decoder.options]
channels = 3
"""
WORDS = ["relaxed", "--data", "images.npz", "--out", "run", "--device", "cpu", "--steps", "6"]
WORDS += ["--set", "guide.encoder.width=8", "--set", "fit.batch_size=8"]


@pytest.fixture
def folder(tmp_path, monkeypatch, images):
    """A working folder with a module, a model and images."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nets.py").write_text(MODULE)
    (tmp_path / "model.toml").write_text(TOML)
    np.savez(tmp_path / "images.npz", imgs=images.images.numpy())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def forget():
    for name in ("mine", "mine.nets"):
        sys.modules.pop(name, None)


def test_a_run_names_its_network_and_is_read_where_that_can_be_imported(
    folder, no_drawing, monkeypatch
):
    path = list(sys.path)
    cut(monkeypatch, 3)
    ngvae("train", "model.toml", *WORDS, code=143)
    forget()
    cut(monkeypatch)
    ngvae("train", "--resume", "run")
    assert sys.path == path
    config = (folder / "run" / "config.toml").read_text()
    assert 'factory = "mine.nets:Pictures"' in config and "channels = 3" in config
    forget()
    assert "latent" in ngvae("inspect", "run")
    fit, spec = runs.load_run("run")
    assert fit.model.decoder.trunk.channels == 3 and spec.model.decoder.width == 8
    assert "one of your own" in (folder / "run" / "report.html").read_text()
    again = ng.NGVAE.load("run")
    assert again.model.decoder == spec.model.decoder
    forget()
    (folder / "mine" / "nets.py").rename(folder / "mine" / "moved.py")
    line = ngvae("inspect", "run", code=2)
    assert "model.decoder.factory: cannot import mine.nets: No module named 'mine.nets'" in line
    (folder / "mine" / "nets.py").write_text(MODULE.replace("Linear(width", "Linear(1 + width"))
    forget()
    assert "Pictures: fails at an input of shape (2, 8)" in ngvae("inspect", "run", code=2)
    (folder / "mine" / "nets.py").write_text("class Pictures")
    forget()
    assert "cannot import mine.nets: expected ':'" in ngvae("inspect", "run", code=2)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise ValueError('of its\\nown')", "ValueError: of its"),
        ("{}['a']", "KeyError: 'a'"),
        ("undefined", "NameError: name 'undefined' is not defined"),
        ("open('no.txt')", r"FileNotFoundError: \[Errno 2\]"),
        ("assert False", "AssertionError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_is_one_line(body, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_nets.py").write_text(body)
    decoder = {"kind": "own", "factory": "failing_nets:Net"}
    with pytest.raises(UserError, match=f"factory: cannot import failing_nets: {line}"):
        ng.load_model("normal_gamma", SHAPE, decoder=decoder)
    assert "failing_nets" not in sys.modules


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda shape: {}["a"], "cannot be made: KeyError: 'a'"),
        (lambda shape: 1 / 0, "cannot be made: ZeroDivisionError: division by zero"),
        (lambda shape: nn.Linear(8, 64).nothing, "cannot be made: AttributeError: "),
    ],
)
def test_a_factory_that_fails_is_one_line(wrong, line):
    def factory(shape, width):
        return wrong(shape)

    with pytest.raises(UserError, match=line):
        ng.load_model("normal_gamma", SHAPE, decoder={"kind": "own", "factory": factory})


def test_what_a_run_folder_cannot_name_is_not_saved(images, tmp_path, no_drawing):
    fit = ng.fit(*pair(images, encoder=of_any_number), images, schedule=STILL, **SHORT)
    line = (
        "save_run: encoder: expected a class of torch.nn.Module, .* got of_any_number of test_own"
    )
    with pytest.raises(UserError, match=line):
        fit.save(tmp_path / "run", images)
    assert not (tmp_path / "run").exists()
    fit = ng.fit(*pair(images), images, schedule=STILL, **SHORT)
    fit.save(tmp_path / "run", images)
    read, _ = ng.load_run(tmp_path / "run", "cpu")
    left, right = state(read), state(fit)
    assert all(torch.equal(left[name], right[name]) for name in right)
