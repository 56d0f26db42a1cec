"""What functions of a fit and of images take, and what they refuse."""

import warnings

import numpy as np
import pytest
import torch

import ngvae_pyro as ng
from ngvae_pyro import evaluation, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics, metrics, scores
from ngvae_pyro.records import CheckedMetrics, History, check
from ngvae_pyro.report import plots
from ngvae_pyro.specs import FitSpec, RunSpec


@pytest.fixture
def fit(small_pair):
    return ng.Fit(*small_pair(), FitSpec(device="cpu"))


@pytest.fixture
def spec(fit):
    parts = {"model": fit.model.spec, "guide": fit.guide.spec, "data": {"name": "a.npz"}}
    return RunSpec(model_name="normal_gamma", guide_name="relaxed", **parts)


# With as many pixels, so that the network takes them.
OTHERS = {
    "shape": (ImageData("wide", torch.rand(4, 3, 64, 16)), r"'wide' has images of shape \(3, 64, "),
    "tensor": (torch.rand(4, 3, 32, 32), r"expected images as ngvae_pyro.ImageData.*, got Tensor"),
    "array": (np.zeros((4, 3, 32, 32)), r"expected images as ngvae_pyro.ImageData.*, got ndarray"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    "call",
    [
        lambda fit, data, spec, path: ng.uncertainty.uncertainty(fit, data),
        lambda fit, data, spec, path: diagnostics.codes(fit, data),
        lambda fit, data, spec, path: evaluation.sample(fit, data),
        lambda fit, data, spec, path: plots.save_all(
            path, fit, data, {"precision": {}, "probs": []}
        ),
        lambda fit, data, spec, path: plots.reconstructions(fit, data),
        lambda fit, data, spec, path: plots.traversals(fit, data, []),
        lambda fit, data, spec, path: ng.save_run(path, fit, spec, data),
    ],
    ids=lambda call: call.__code__.co_names[-1],
)
def test_images_of_another_shape_are_refused(fit, spec, tmp_path, call, other):
    images, line = OTHERS[other]
    with pytest.raises(UserError, match=line):
        call(fit, images, spec, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [ng.evaluate, ng.to_arviz, ng.log_likelihood, ng.check])
def test_arrays_of_another_shape_are_refused(fit, call):
    images, line = OTHERS["shape"]
    for data in (images, images.images, images.images.numpy()):
        with pytest.raises(UserError, match=line.replace("'wide'", "'(wide|images)'")):
            call(fit, data)


def test_images_of_another_shape_are_not_trained_on(fit):
    images, line = OTHERS["shape"]
    for data in (images, images.images):
        with pytest.raises(UserError, match=line.replace("'wide'", "'(wide|images)'")):
            ng.fit(fit.model, fit.guide, data, fit.spec)


def test_scores_and_assessment_of_another_shape_are_refused(fit, spec, data):
    other, line = OTHERS["shape"]
    with pytest.raises(UserError, match=line):
        scores.reference(fit, other)
    with pytest.raises(UserError, match=line):
        scores.scores(fit, other, scores.reference(fit, data))
    with pytest.raises(UserError, match=line):
        evaluation.assess(fit, spec, other, [1.0] * 5)
    with pytest.raises(UserError, match=r"x: expected images of shape \(B, 3, 32, 32\), got \(4, "):
        diagnostics.reconstruct(fit, other.images)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"chains": 0}, "chains: expected a whole number, at least 1, got 0"),
        ({"draws_per_chain": 0}, "draws_per_chain: expected a whole number, at least 1, got 0"),
        ({"observations": 0}, "observations: expected a whole number, at least 1, got 0"),
        ({"observations": -1}, "observations: expected a whole number, at least 1, got -1"),
        ({"chains": 1.5}, "chains: expected a whole number, at least 1, got 1.5"),
        ({"predictive": 1001}, "predictive: expected a whole number, at most the 1000 draws of a"),
        ({"predictive": -1}, "predictive: expected a whole number, .* of a chain, got -1"),
        ({"observations": 10_000}, "expected at most the 200 images of 'sprites.*', got 10000"),
    ],
)
def test_arviz_refuses(fit, data, options, line):
    with pytest.raises(UserError, match=line):
        ng.to_arviz(fit, data, **options)


def test_arviz_takes_fifty_or_all_there_are(fit, data):
    few = {"chains": np.int64(2), "draws_per_chain": 3}
    for images, count in ((data, 50), (data.subset([0, 1, 2]), 3)):
        posterior = ng.to_arviz(fit, images, **few)
        assert posterior["posterior"]["z"].shape == (2, 3, count, 5)


def test_one_held_out_image(fit, spec, data):
    one = data.subset([0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ng.evaluate(fit, one)
        assert np.isfinite(found["elbo"]) and found["variance_of_loc"] == [0.0] * 5
    line = "at least 2 held-out images to measure codes on, got 1; a larger data.held_out has more"
    with pytest.raises(UserError, match=line):
        evaluation.assess(fit, spec, one, [1.0] * 5)


@pytest.mark.slow
def test_collapsed_latents_are_not_scored(small_pair, data, spec, monkeypatch):
    """Their means are roundings of nothing, and scores that divide by their size would see them."""
    model, guide = small_pair()
    head = guide.encoder.head
    with torch.no_grad():
        head.weight[:5] *= 30.0
        head.weight[3:5] *= 1e-5
    fit = ng.Fit(model, guide, FitSpec(device="cpu"))
    monkeypatch.setattr(
        "ngvae_pyro.evaluation.assessment.evaluation_images",
        lambda spec, held_out: (held_out, "these"),
    )
    found = evaluation.assess(fit, spec, data, [1.0] * 5)
    loc = diagnostics.codes(fit, data).loc.numpy()
    factors, _ = evaluation.varying_factors(data)
    assert found["scored"] == found["active_units"] == 3
    expected = metrics.disentanglement(loc[:, :3], factors, seed=spec.fit.seed)
    assert found["scores"] == pytest.approx(expected, nan_ok=True)
    assert found["scores"]["sap"] != metrics.disentanglement(loc, factors)["sap"]


# Sizes of texts


def test_a_text_that_takes_too_long_is_refused(tmp_path):
    path = tmp_path / "guide.toml"
    path.write_text(f"{'.'.join('a' * 40_000)} = 1")
    line = "guide.toml: cannot read the file: too large: expected at most 16,384 bytes, got 80,003"
    with pytest.raises(UserError, match=line):
        ng.load_guide(path, ng.load_model("normal_gamma", latent_size=2))
    (tmp_path / "config.toml").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"config.toml: cannot read the file: too large"):
        runs.load_spec(tmp_path)
    from ngvae_pyro.cli import assign

    with pytest.raises(UserError, match=r"^--set guide.x: too long: expected at most 16,384"):
        assign({}, f"guide.x={{{'.'.join('a' * 40_000)} = 1}}")


def test_a_large_history_is_read_and_a_larger_file_is_not(tmp_path):
    # 100,000 steps with 15 latents have 1,001 rows of this size.
    row = {"step": 1, "loss": 1.5, "kl": {"z": 0.25}, "informative": 7, "probs": [1 / 3] * 15}
    runs.write_json(tmp_path / "history.json", {"rows": [row] * 1001, "moves": []})
    assert len(runs.read_json(tmp_path / "history.json", History)["rows"]) == 1001
    with (tmp_path / "metrics.json").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(UserError, match=r"metrics.json: cannot read the file: too large: .* bytes"):
        runs.load_metrics(tmp_path)


class Weights(torch.nn.Module):
    """x = W z, as a decoder of images (1, 2, 2)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, z):
        return (z @ self.weight.T).unflatten(-1, (1, 2, 2))


def test_what_a_latent_earns_where_it_is_known(monkeypatch):
    """With x = W z it loses |w_k|^2 (z_k - mean)^2 / (2 scale^2), and 0 if it is not decoded."""
    scale, weight = 0.1, torch.tensor([[0.5, 0.1, 0], [0.2, 0, 0], [0, 0.4, 0], [0.1, 0.1, 0]])
    model = ng.load_model("gaussian", (1, 2, 2), latent_size=3, likelihood={"scale": scale})
    guide = ng.load_guide("gaussian", model)
    model.decoder = Weights(weight)
    z = torch.rand(600, 3, generator=torch.manual_seed(0))
    data = ng.ImageData("linear", (z @ weight.T).unflatten(-1, (1, 2, 2)))
    few = z[: diagnostics.EARNING]
    monkeypatch.setattr(guide, "draws", lambda x, count: (torch.ones(1, len(x), 3), few[None]))
    code = diagnostics.Codes(z, z, z, z)
    found = diagnostics.earned(ng.Fit(model, guide, FitSpec(device="cpu")), data, code)
    known = weight.square().sum(0) * few.var(0, correction=0) / (2 * scale**2)
    assert found == pytest.approx(known.tolist(), rel=1e-4, abs=1e-4) and found[2] == 0.0


def test_what_is_earned_and_paid_is_in_the_metrics(fit, data):
    with torch.no_grad():
        fit.model.decoder.stem.weight[:, 1] = 0.0
    found = ng.evaluate(fit, data)
    assert len(found["earned"]) == 5 and found["earned"][1] == 0.0 and all(found["earned"][2:])
    assert found == ng.evaluate(fit, data)
    rows = diagnostics.most_informative_first(found)
    for row in rows:
        assert row["earned"] == found["earned"][row["latent"]]
        assert row["paid"] == pytest.approx(sum(row["kl"].values()))
    check(CheckedMetrics, found, "metrics.json")
    with pytest.raises(UserError, match=r"metrics.json: .*earned: expected 5 numbers, got 3"):
        check(CheckedMetrics, {**found, "earned": found["earned"][:3]}, "metrics.json")
    # An older version did not know it.
    del found["earned"]
    check(CheckedMetrics, found, "metrics.json")
    assert "earned" not in diagnostics.most_informative_first(found)[0]


def test_counts_earn_nothing_that_could_be_measured(data):
    model = ng.load_model("poisson", data, latent_size=3)
    found = ng.evaluate(ng.Fit(model, ng.load_guide("poisson", model), FitSpec()), data)
    assert "earned" not in found and "paid" in diagnostics.most_informative_first(found)[0]
