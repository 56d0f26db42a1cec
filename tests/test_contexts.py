"""Looks at a fit leave no trace, and what belongs to the process is used by one at a time."""

import threading

import numpy as np
import pytest
import torch
from input_cases import few_figures
from support import SMALL
from torch import nn

import ngvae_pyro as ng
from ngvae_pyro import evaluation, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics, scores, uncertainty
from ngvae_pyro.fitted import Fit
from ngvae_pyro.specs import FitSpec, RunSpec, ScheduleSpec

SPEC = FitSpec(steps=6, batch_size=16, monitor_every=2, device="cpu", learning_rate=1e-3)


@pytest.fixture(scope="module")
def images():
    return ng.sprites(n=40, seed=0)


def pair(images):
    torch.manual_seed(0)
    model = ng.load_model("gaussian", images, decoder=SMALL, latent_size=3)
    return model, ng.load_guide("gaussian", model, encoder=SMALL)


def users_pair(images):
    """With an encoder that drops out, a decoder that normalises batches, and a part that is held
    still, and with buffers of a user's own."""
    model, guide = pair(images)
    guide.encoder.trunk = nn.Sequential(guide.encoder.trunk, nn.Dropout(0.5))
    model.decoder.trunk = nn.Sequential(nn.BatchNorm1d(SMALL.width), model.decoder.trunk)
    guide.encoder.register_buffer("calls", torch.zeros(()))
    guide.encoder.register_forward_pre_hook(count)
    return model, guide


def count(module, inputs):
    module.calls += 1.0


def state(*modules):
    modes = [part.training for module in modules for part in module.modules()]
    return modes, [v.clone() for module in modules for v in module.state_dict().values()]


@pytest.fixture(scope="module")
def trained(images):
    return ng.fit(*users_pair(images), images, SPEC, progress=False)


LOOKS = {
    "evaluate": lambda fit, images: ng.evaluate(fit, images)["elbo"],
    "to_arviz": lambda fit, images: (
        ng.to_arviz(
            fit, images, observations=5, chains=1, draws_per_chain=3
        ).log_likelihood.x.values
    ),
    "codes": lambda fit, images: diagnostics.codes(fit, images).loc,
    "reconstruct": lambda fit, images: diagnostics.reconstruct(
        fit, ImageData.to_unit(images.images)
    ),
    "log_likelihood": lambda fit, images: (
        ng.log_likelihood(fit, images.subset(slice(0, 4)), draws=25).values
    ),
    "scores": lambda fit, images: scores.scores(fit, images, scores.reference(fit, images))["elbo"],
    "uncertainty": lambda fit, images: uncertainty.uncertainty(fit, images).z,
    "sample": lambda fit, images: evaluation.sample(fit, images).z,
    "traverse": lambda fit, images: fit.traverse(images, [0, 1], steps=3),
    "interpolate": lambda fit, images: fit.interpolate(*images.images[:2], steps=3),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_in_eval_mode_and_leaves_no_trace(name, images, trained):
    look, both = LOOKS[name], (trained.model, trained.guide)
    for module in both:
        module.eval()
    expected = np.asarray(look(trained, images))
    for module in both:
        module.train()
    # Somebody holds a part still; it stays so, and the others stay as they are.
    trained.model.decoder.trunk[1].eval()
    before = state(*both)
    assert np.array_equal(np.asarray(look(trained, images)), expected)
    after = state(*both)
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_a_training_is_in_train_mode_and_its_looks_are_not(images):
    model, guide = users_pair(images)
    for module in (model, guide):
        module.eval()
    before = state(model, guide)[0]
    modes = []
    norm = model.decoder.trunk[0]
    norm.register_forward_hook(lambda module, *_: modes.append(module.training))
    # Nor does the scale change, for which the images are reconstructed.
    still = ScheduleSpec(rescale=())
    fit = ng.fit(model, guide, images, SPEC, progress=False, schedule=still)
    # Before each second step and after the last one there is a look.
    assert modes == [False, True, True] * 3 + [False]
    assert norm.num_batches_tracked == guide.encoder.calls == fit.steps == 6
    assert state(model, guide)[0] == before


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_default_type_of_torch_changes_nothing(images, trained, float64, tmp_path, monkeypatch):
    """Built, trained, saved and read under either, to the last bit."""
    monkeypatch.setattr("ngvae_pyro.report.plots.save_all", few_figures)
    again = ng.sprites(n=40, seed=0)
    assert torch.equal(again.images, images.images)
    spec = RunSpec(model=pair(images)[0].spec, guide=pair(images)[1].spec, fit=SPEC)
    found = []
    for build, train in (
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float64, torch.float64),
    ):
        torch.set_default_dtype(build)
        model, guide = pair(images)
        torch.set_default_dtype(train)
        fit = ng.fit(model, guide, images, SPEC, progress=False)
        assert torch.get_default_dtype() is train
        found.append((fit.history, ng.evaluate(fit, images)))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(one == found[0] for one in found[1:])
    # The last one is of float64, and read by both.
    runs.save_run(tmp_path, fit, spec, images)
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(default)
        read, _ = ng.load_run(tmp_path, "cpu")
        assert ng.evaluate(read, images) == found[0][1]
        for name, look in LOOKS.items():
            assert np.array_equal(look(read, images), look(fit, images)), name


def test_weights_of_another_type_are_refused(images):
    model, guide = pair(images)
    said = r"Encoder|Guide.*: expected float32 weights, got float64; call .float\(\)"
    with pytest.raises(UserError, match=said):
        ng.fit(model, guide.double(), images, SPEC, progress=False)


def test_a_fit_is_the_only_one_of_its_process(images):
    """Another one is refused at once, and so is a look at another from a second thread."""
    under_way, go_on, nested = threading.Event(), threading.Event(), []
    model, guide = pair(images)

    def hold(*_):
        if not under_way.is_set():
            under_way.set()
            assert go_on.wait(60)
            with pytest.raises(UserError, match="^a fit is under way in this process.*processes"):
                ng.fit(*pair(images), images, SPEC, progress=False)
            nested.append(True)

    model.register_forward_hook(hold)
    thread = threading.Thread(
        target=lambda: ng.fit(model, guide, images, SPEC, progress=False), daemon=True
    )
    thread.start()
    try:
        assert under_way.wait(60)
        other = pair(images)
        said = "^a fit is under way in another thread.*train in processes of their own$"
        with pytest.raises(UserError, match=said):
            ng.fit(*other, images, SPEC, progress=False)
        with pytest.raises(UserError, match=said):
            ng.evaluate(Fit(*other, SPEC), images)
    finally:
        go_on.set()
        thread.join(60)
    assert nested == [True]
    # And then there is room again.
    assert ng.fit(*pair(images), images, SPEC, progress=False).steps == 6
