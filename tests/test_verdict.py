"""What speaks against a count of latents."""

import json

import pytest
import torch
from support import ngvae

import ngvae_pyro as ng
from ngvae_pyro import records
from ngvae_pyro.errors import UserError, printable
from ngvae_pyro.specs import FitSpec, LikelihoodSpec, ModelSpec
from ngvae_pyro.verdict import Verdict, judge

STEPS = FitSpec().steps
# Seven informative latents and eight that are the prior's, as `make demo` ends.
PROBS, VARIANCE = [0.87] * 7 + [0.06] * 8, [1.0] * 7 + [0.0005] * 8


def history(*losses, steps=STEPS):
    """Rows at the fractions 0.8, 0.9 and 1 of a training, or as many before the end."""
    at = [1.0 - 0.1 * k for k in reversed(range(len(losses)))]
    pairs = zip(at, losses, strict=True)
    return [{"step": round(f * steps), "loss": x, "kl": {"z": 20.0}} for f, x in pairs]


def verdict(probs=PROBS, variance=VARIANCE, **more):
    values = {"model": ModelSpec(), "selects": True, "steps": STEPS, "scale": 0.1, **more}
    model = values["model"].model_copy(
        update={"likelihood": values["model"].likelihood.resolved(binary=False)}
    )
    return judge(probs, variance, **{**values, "model": model})


def test_a_count_is_settled():
    found = verdict(history=history(-4148.0, -4149.5, -4149.7))
    assert found.settled and found.word == "settled" and not list(found.lines())
    assert str(found) == "7 of 15 latents are informative (settled)"
    assert verdict([0.9], [1.0]).count == "1 of 1 latents is informative"


def test_a_wide_loc_that_is_not_counted_leaks():
    variance = [*VARIANCE[:13], 3.57, 0.2]
    found = verdict(variance=variance)
    line = next(found.lines())
    # 1/2 log(1 + 3.57) = 0.76.
    assert found.word == "leaking" and found.leaking == (13, 14)
    assert line.startswith("leaking: z13 (up to 0.76 nats), z14 (up to 0.09 nats) carry")
    assert line.endswith("try model.likelihood.scale=0.05")
    assert next(found.lines("--set")).endswith("try --set model.likelihood.scale=0.05")
    # Of a latent that is known better, 1/2 log(1 + 3.57 * 5) = 1.47.
    narrow = verdict(variance=variance, precision=[5000.0] * 7 + [5.0] * 8)
    assert "z13 (up to 1.47 nats)" in next(narrow.lines())
    # An informative latent is meant to vary, and a faint trace is none.
    assert verdict(variance=[3.0] * 7 + [0.09] * 8).settled
    # The rate of a count varies by its mean.
    assert verdict(variance=variance, discrete=True).settled


def test_what_helps_against_a_leak_depends_on_the_likelihood():
    leak = {"variance": [1.0] * 7 + [2.0] * 8}

    def advice(**likelihood):
        return verdict(model=ModelSpec(likelihood=LikelihoodSpec(**likelihood)), **leak)

    # That of the training, which may come from the data; of those it has many digits.
    assert advice().findings[0].changes == {"model.likelihood.scale": 0.05}
    data = verdict(scale=0.0734567, **leak)
    assert data.findings[0].changes == {"model.likelihood.scale": 0.037}
    bernoulli = verdict(scale=None, **leak, model=ModelSpec(likelihood={"family": "bernoulli"}))
    assert bernoulli.findings[0].changes == {"model.prior.price": 2.0}
    assert advice(learned=True).findings[0].changes == {"model.prior.price": 2.0}


def test_more_latents_than_dimensions_are_folded():
    found = verdict(dimension=6.2)
    assert found.word == "folded" and not found.findings[0].changes
    assert "7 informative latents lie on a surface of 6.2 dimensions" in found.findings[0].text
    assert found.findings[0].reason.endswith("count them as one")
    perceptron = verdict(dimension=6.2, model=ModelSpec(decoder={"kind": "mlp"}))
    assert perceptron.findings[0].reason.endswith("(model.decoder.kind=separable)")
    # As of seven factors that are all told.
    assert verdict(dimension=6.4).settled and verdict(dimension=8.0).settled
    # A vanilla VAE pays no price for a second latent of the same factor.
    assert verdict(dimension=3.0, selects=False).settled


def test_half_a_latent_is_shared():
    found = verdict([*PROBS[:6], 0.5, 0.51, *PROBS[8:]])
    assert found.informative == 7 and found.word == "shared"
    assert found.findings[0].latents == found.shared == (6, 7)
    # That of the two which is not counted carries something all the same.
    assert found.uncounted([*PROBS[:6], 0.5, 0.51, *PROBS[8:]]) == (6,)
    assert "z6 (p 0.50), z7 (p 0.51) are informative for some images only" in found.findings[0].text
    # Of a vanilla VAE p is a share of images and no weight.
    assert verdict([0.6], [1.0], selects=False).settled
    # And has no price that keeps a latent from being one.
    (faint,) = verdict([0.4], [1.0], selects=False).findings
    assert "where the line is drawn" in faint.reason and not faint.changes


def test_a_short_training_says_so():
    found = verdict(steps=600)
    assert found.word == "short" and found.findings[0].changes == {"fit.steps": STEPS}
    assert "trained for 600 steps, and the schedule was made for 4,400" in found.findings[0].text
    # Without a schedule to cut short, only the ELBO tells.
    assert verdict(steps=600, selects=False).settled
    rising = {"steps": 600, "selects": False, "history": history(-90.0, -105.0, steps=600)}
    assert verdict(**rising).findings[0].changes == {"fit.steps": 1200}
    assert "rose by 15.0 nats" in verdict(**rising).findings[0].text
    # As the default sprites end, at a learning rate that falls to 0.
    assert verdict(history=history(-4122.3, -4145.4, -4150.7)).settled
    # In a history with a gap, 18 nats over a fifth are 9 over a tenth.
    gap = [
        {"step": step, "loss": loss, "kl": {"precision": 0.0}}
        for step, loss in ((0, 0.0), (3520, -82.0), (4400, -100.0))
    ]
    assert verdict(history=gap).settled
    gap[1]["loss"] = -74.0
    assert "rose by 13.0 nats" in verdict(history=gap).findings[0].text
    # The prior of the precisions may have become another one in that time.
    gap[2].update(loss=-92.0, kl={"precision": 8.0})
    assert "rose by 13.0 nats" in verdict(history=gap).findings[0].text


def test_a_verdict_is_kept_and_read_again():
    found = verdict([*PROBS[:6], 0.5, *PROBS[7:]], [*VARIANCE[:14], 2.0], steps=600)
    assert found.word == "leaking, shared, short"
    metrics = {"informative": found.informative, "probs": PROBS, "verdict": found.as_dict()}
    records.check(records.VerdictValues, json.loads(json.dumps(metrics["verdict"])), "here")
    assert Verdict.from_metrics(json.loads(json.dumps(metrics))) == found
    assert Verdict.from_metrics({"informative": 7, "probs": PROBS}) is None
    with pytest.raises(UserError, match="kind"):
        records.check(
            records.FindingValues, {**metrics["verdict"]["findings"][0], "kind": "odd"}, "here"
        )
    assert all(line == printable(line) for line in found.lines())


def test_a_fit_has_a_verdict_on_its_training(tmp_path):
    data = ng.sprites(200, vary=("x", "red"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ng.load_model("normal_gamma", data, latent_size=3, decoder={"width": 8, "depth": 1})
        guide = ng.load_guide("relaxed", model, encoder={"width": 8, "depth": 1})
    fit = ng.fit(model, guide, data, steps=5, progress=False)
    assert fit.verdict.word.endswith("short")
    assert fit.verdict.informative == fit.history[-1]["informative"]
    metrics = ng.evaluate(fit, data)
    assert Verdict.from_metrics(metrics).informative == metrics["informative"]
    # What was not trained here has no history to judge.
    assert ng.Fit(model, guide, fit.spec).verdict is None


def test_the_command_line_says_it(no_drawing, tmp_path):
    words = ["train", "normal_gamma", "relaxed", "--data", "sprites:x", "--steps", "5"]
    words += ["--latents", "3", "--set", "data.size=60", "--set", "model.decoder.width=8"]
    words += ["--set", "guide.encoder.width=8", "--out", str(tmp_path / "r"), "--device", "cpu"]
    said = ngvae(*words)
    assert "short: trained for 5 steps" in said and "try --set fit.steps=4400" in said
    assert "short" in ngvae("inspect", tmp_path / "r")
