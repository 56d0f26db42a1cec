"""Images for validation, optimizers and lengths by name, and what a diverged training says."""

import pickle

import numpy as np
import pytest
import torch
from support import SHORT, load, ngvae

import ngvae_pyro as ng
from ngvae_pyro import machine, runs
from ngvae_pyro.errors import UserError
from ngvae_pyro.specs import AdversarialSpec, FitSpec, RunSpec, ScheduleSpec
from ngvae_pyro.training import steps
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.training.checkpoints import Checkpoints
from ngvae_pyro.training.steps import NonFiniteLoss

pytestmark = pytest.mark.usefixtures("no_drawing")

FEW = FitSpec(steps=8, batch_size=16, monitor_every=4, device="cpu", fast=False)
PLAIN = ScheduleSpec()


@pytest.fixture(scope="module")
def data():
    return ng.sprites(n=80, seed=0)


def train(data, spec=FEW, **how):
    return ng.fit(*load(data), data, spec, **{"schedule": PLAIN, "progress": False, **how})


def weights(fit):
    modules = (fit.model, fit.guide)
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


# Validation -----------------------------------------------------------------------------------


def test_the_validation_loss_is_that_of_the_images(data):
    others = ng.sprites(n=30, seed=1)
    fit = train(data, validation=others)
    assert len(fit.history) == 3 and fit.count == 80
    # Of the training images it is the loss.
    own = train(data, validation=data)
    assert [row["validation_loss"] for row in own.history] == [r["loss"] for r in own.history]
    assert [row["validation_loss"] for row in fit.history] != [r["loss"] for r in own.history]
    # They change nothing but the scale, and without them there is no such number.
    plain = train(data)
    assert not weights(fit).equal(weights(plain))
    held = [
        train(data, schedule=ScheduleSpec(rescale=()), **how)
        for how in ({"validation": others}, {})
    ]
    assert weights(held[0]).equal(weights(held[1]))
    assert all("validation_loss" not in row for row in plain.history)
    assert (
        "validation loss" in fit.history_table() and "validation loss" not in plain.history_table()
    )


def test_a_share_of_the_images_is_set_aside(data):
    fit, by_key = train(data, validation=0.25), train(data, FEW, **{"validation": 0.25})
    assert fit.count == 60 and fit.digest == data.digest and fit.spec.validation == 0.25
    rest, aside = data.split(0.25, seed=0)
    how = {"schedule": PLAIN, "progress": False}
    given = ng.fit(*load(data), rest, FEW, validation=aside, **how)
    assert fit.history == given.history == by_key.history
    with pytest.raises(UserError, match="validation: expected images or the share fit.validation"):
        train(data, FEW.model_copy(update={"validation": 0.2}), validation=aside)


def test_vectors_for_validation_have_the_units_of_the_others():
    rows = np.random.default_rng(0).normal(5.0, 3.0, (90, 6))
    whole = ng.load_model("normal_gamma", rows[:60], latent_size=2)
    guide = ng.load_guide("relaxed", whole)
    fit = ng.fit(whole, guide, rows[:60], FEW, validation=rows[:60], progress=False)
    assert fit.history[-1]["validation_loss"] == fit.history[-1]["loss"]
    with pytest.raises(UserError, match="validation: expected 6 columns"):
        ng.fit(whole, guide, rows[:60], FEW, validation=rows[60:, :4], progress=False)


def test_checkpoints_are_of_a_training_with_these_images(data, tmp_path):
    keep = Checkpoints(tmp_path / "kept", every=3)
    train(data, validation=0.25, checkpoints=keep)
    for other in ({}, {"validation": 0.2}, {"validation": ng.sprites(n=20, seed=1)}):
        with pytest.raises(UserError, match="is a checkpoint of a training with"):
            train(data, checkpoints=keep, resume=True, **other)
    train(data, validation=0.25, checkpoints=keep, resume=True)


def test_the_identity_of_a_training_is_as_before_it_had_these_keys(data):
    """So that checkpoints of older versions are gone on from."""
    identity = svi.Trainer(*load(data), data, FEW, PLAIN).identity
    newer = ("optimizer", "weight_decay", "decay", "epochs", "validation", "early_stopping")
    assert not {*newer} & {*identity["fit"]} and "validation" not in identity
    changed = FEW.model_copy(update={"decay": "cosine"})
    assert svi.Trainer(*load(data), data, changed, PLAIN).identity["fit"]["decay"] == "cosine"


def test_a_run_folder_keeps_the_validation(tmp_path):
    words = [*SHORT, "--set", "fit.validation=0.2", "--set", "fit.early_stopping=1"]
    ngvae("train", "gaussian", "gaussian", *words, "--out", tmp_path / "run")
    fit, spec = runs.load_run(tmp_path / "run")
    assert spec.fit.validation == 0.2 and spec.fit.early_stopping == 1
    assert all(isinstance(row["validation_loss"], float) for row in fit.history)
    again = runs.resume(tmp_path / "run")[0]
    assert again.history == fit.history and again.skipped == fit.skipped


# Optimizers, and how long ---------------------------------------------------------------------


def test_adamw_shrinks_the_weights_of_layers_and_nothing_else(data):
    trainers = {}
    for name, more in (("adam", {}), ("adamw", {"weight_decay": 3.0})):
        spec = FEW.model_copy(update={"optimizer": name, **more})
        trainers[name] = svi.Trainer(*load(data), data, spec, PLAIN)
        before = [p.detach().clone() for p in trainers[name].parameters]
        with machine.seeded(0, torch.device("cpu")):
            trainers[name].train_step()
    plain, shrunk = (trainer.parameters for trainer in trainers.values())
    for p, q, start in zip(plain, shrunk, before, strict=True):
        less = 3.0 * FEW.learning_rate * start if p.dim() > 1 else 0.0
        torch.testing.assert_close(q, p - less, rtol=1e-4, atol=1e-6)
    assert {p.dim() > 1 for p in plain} == {False, True}


def test_steps_of_adamw_are_recorded_and_replayed_to_the_bit(data, monkeypatch):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 4)
    fits = []
    for fast in (False, True):
        spec = FitSpec(steps=20, batch_size=16, device="cpu", fast=fast, optimizer="adamw")
        fits.append(train(data, spec.model_copy(update={"decay": "cosine"})))
    assert weights(fits[0]).equal(weights(fits[1]))


def test_moves_reset_the_means_of_adamw(data):
    spec = FEW.model_copy(update={"optimizer": "adamw"})
    trainer = svi.Trainer(*load(data), data, spec, PLAIN)
    trainer.train_step()
    parameter = trainer.parameters[0]
    assert trainer.optimizer.state[parameter]["exp_avg"].abs().sum() > 0
    trainer.forget([(parameter, ...)])
    assert trainer.optimizer.state[parameter]["exp_avg"].abs().sum() == 0


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [1.0, 1.0, 0.5, 0.0]),
        ("cosine", [1.0, 1.0, 0.5, 0.0]),
        ("none", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_falls_as_it_is_told(data, decay, expected):
    spec = FEW.model_copy(update={"decay": decay, "decay_begin": 0.5})
    trainer = svi.Trainer(*load(data), data, spec, PLAIN)
    found = [trainer.learning_rate(1.0, t) for t in (0.0, 0.5, 0.75, 1.0)]
    assert found == pytest.approx(expected, abs=1e-9)
    quarter = {"linear": 0.75, "cosine": 0.5 + 0.5 * 0.5**0.5, "none": 1.0}[decay]
    assert trainer.learning_rate(1.0, 0.625) == pytest.approx(quarter)


def test_epochs_are_turned_into_steps(data, tmp_path):
    spec = FitSpec(epochs=3, batch_size=16, device="cpu", monitor_every=4, fast=False)
    fit = train(data, spec)
    assert fit.steps == fit.spec.steps == 15 and fit.spec.epochs is None
    assert weights(fit).equal(weights(train(data, spec.in_steps(80))))
    # Of what is left to train on.
    assert train(data, spec, validation=0.4).steps == 9
    # A batch is never larger than the data.
    assert FitSpec(epochs=2, batch_size=500).in_steps(80).steps == 2
    with pytest.raises(UserError, match="expected steps or epochs, got both"):
        FitSpec(epochs=3, steps=20)
    with pytest.raises(UserError, match="fit: expected steps or epochs, got both"):
        RunSpec(fit={"epochs": 3, "steps": 20})


def test_a_run_is_resumed_by_its_epochs(tmp_path):
    words = [word for word in SHORT if word not in ("--steps", "6")]
    words += ["--set", "fit.epochs=1", "--out", tmp_path / "run"]
    ngvae("train", "gaussian", "gaussian", *words)
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "epochs = 1" in text and "\nsteps" not in text.partition("[fit]")[2].partition("\n[")[0]
    assert runs.load_metrics(tmp_path / "run")["steps"] == 108 // 8
    assert runs.load_spec(tmp_path / "run").fit.epochs == 1


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"optimizer": "sgd"}, "optimizer: expected one of 'adam' or 'adamw', got 'sgd'"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"weight_decay": 0.1}, "weight_decay needs optimizer = 'adamw', got optimizer = 'adam'"),
        ({"validation": 1.0}, "validation: expected a number < 1"),
        ({"early_stopping": 0}, "early_stopping: expected a number > 0"),
    ],
)
def test_what_is_no_key_of_a_fit_is_a_line(values, line):
    with pytest.raises(UserError, match=line):
        FitSpec(**values)


# What has diverged ----------------------------------------------------------------------------


def test_a_diverged_training_says_where_and_what_to_try(data):
    spec = FEW.model_copy(update={"learning_rate": 1e30, "steps": 40, "network_dtype": "bfloat16"})
    with pytest.raises(NonFiniteLoss) as caught:
        train(data, spec)
    error, line = caught.value, str(caught.value)
    assert error.step >= 1 and "try fit.network_dtype=float32, or fit.learning_rate=1e+29" in line
    assert "fit.clip_norm=200)" in line
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.where) == (line, error.where)


def test_the_first_parameter_without_a_finite_gradient_is_named(data):
    trainer = svi.Trainer(*load(data), data, FEW, PLAIN)
    trainer.train_step()
    name, parameter = list(trainer.guide.encoder.named_parameters())[-1]
    gradients = trainer.steps.gradients

    def spoilt(x):
        loss, *found = gradients(x)
        at = [p is parameter for p in trainer.parameters].index(True)
        found[at] = torch.full_like(parameter, float("inf"))
        return loss, *found

    trainer.steps.gradients = spoilt
    with pytest.raises(NonFiniteLoss, match=f"first that of guide.encoder.{name};") as caught:
        trainer.train_step()
    assert caught.value.where == f"guide.encoder.{name}"


def test_the_hint_is_by_what_was_seen():
    first = NonFiniteLoss(0, float("nan"), float("nan")).advised(FEW)
    assert (
        "look for extreme values in the data, or try a larger model.likelihood.scale" in first.hint
    )
    later = NonFiniteLoss(7, float("nan"), float("nan")).advised(FEW)
    assert later.hint == "try fit.learning_rate=0.0003, or fit.clip_norm=200"
    spec = FEW.model_copy(update={"adversarial": AdversarialSpec()})
    own = NonFiniteLoss(7, 1.0, float("inf"), steps.OF_THE_OBJECTIVE).advised(spec)
    assert own.hint == "try fit.adversarial.learning_rate=0.0001, or fit.clip_norm=200"


def test_the_estimator_passes_callbacks_on():
    seen = []

    class Looks(ng.Callback):
        def on_look(self, view):
            seen.append(view.step)

    rows = np.random.default_rng(0).normal(size=(60, 4))
    vae = ng.NGVAE(2, steps=3, random_state=0, callbacks=[Looks()]).fit(rows)
    assert seen == [0, 3] and vae.get_params()["callbacks"] == [vae.callbacks[0]]
    with pytest.raises(UserError, match="^callbacks: expected"):
        ng.NGVAE(2, steps=3, callbacks=3).fit(rows)
