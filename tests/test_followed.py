"""Which factor each latent follows: by construction, and wherever it is said."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support import SHORT, SMALL, measured, ngvae, texts, undrawn

import ngvae_pyro as ng
from ngvae_pyro import records, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics, metrics
from ngvae_pyro.evaluation.diagnostics import Followed, followed
from ngvae_pyro.report import plots
from ngvae_pyro.specs import FitSpec

# The rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correlations", "factor", "text", "sentence"),
    [
        ({"x": 0.1, "red": 0.93}, "red", "red 0.93", "follows red (0.93)"),
        ({"red": 0.5}, "red", "red 0.50", "follows red (0.50)"),
        # Twice the square: 0.7^2 = 0.49 is not twice 0.25, 0.72^2 = 0.518 is.
        ({"y": 0.7, "x": 0.5}, None, *["mixes y 0.70, x 0.50"] * 2),
        ({"y": 0.72, "x": 0.5}, "y", "y 0.72", "follows y (0.72)"),
        ({"y": 0.52, "size": 0.61, "x": 0.3}, None, *["mixes size 0.61, y 0.52"] * 2),
        # Below a half none is followed, and below 0.2 none is mixed in.
        ({"y": 0.49, "x": 0.2}, None, *["mixes y 0.49, x 0.20"] * 2),
        ({"y": 0.49, "x": 0.19}, None, "none (y 0.49)", "follows none closely (y 0.49)"),
        ({"y": 0.0}, None, "none (y 0.00)", "follows none closely (y 0.00)"),
    ],
)
def test_the_rule(correlations, factor, text, sentence):
    found = Followed(correlations)
    assert (found.factor, found.text, str(found)) == (factor, text, sentence)
    values = [value for _, value in found.closest]
    assert values == sorted(correlations.values(), reverse=True)
    assert bool(found.mixed) == text.startswith("mixes")


def test_latents_that_are_factors_follow_them():
    data = sprites(400, seed=3)
    columns = {name: data.factors[:, i] for i, name in enumerate(data.factor_names)}
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0))
    codes = torch.stack(
        [
            -3.0 * columns["red"],
            columns["red"] + 0.1 * noise,
            columns["x"] / columns["x"].std() + columns["y"] / columns["y"].std(),
            noise,
            torch.full((400,), 0.1),
        ],
        1,
    )
    found = followed(codes, data.factors, data.factor_names)
    # Two of them follow one factor.
    assert [one.factor for one in found] == ["red", "red", None, None, None]
    assert found[0].correlations["red"] == pytest.approx(1.0)
    assert {name for name, _ in found[2].mixed} == {"x", "y"}
    assert not found[3].mixed and set(found[4].correlations.values()) == {0.0}
    table = metrics.correlations(codes, data.factors)
    assert [list(one.correlations.values()) for one in found] == table.tolist()


def test_factors_that_never_vary_are_not_followed():
    codes = torch.arange(6.0)[:, None]
    found = followed(codes, np.stack([np.arange(6) ** 2, np.full(6, 3)], 1), ["square", "still"])
    assert list(found[0].correlations) == ["square"]


@pytest.mark.parametrize(
    ("factors", "names", "line"),
    [
        (np.arange(12).reshape(6, 2), ["one"], "names: expected 2, one for each factor, got 1"),
        (np.arange(12).reshape(6, 2), "ab", "names: expected the names of the factors"),
        (np.ones((6, 2)), ["a", "b"], "factors: none of the 2 varies"),
        (np.full((6, 1), math.nan), ["a"], "factors: expected finite values"),
    ],
)
def test_what_names_no_factors_is_refused(factors, names, line):
    with pytest.raises(UserError, match=line):
        followed(torch.arange(6.0)[:, None], factors, names)


# Of a fit -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(0)
    model = ng.load_model("normal_gamma", (1, 8, 8), latent_size=3, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    return ng.Fit(model, guide, FitSpec(device="cpu"))


def pictures(n=80, factors=None, names=("bright", "left")):
    """Images whose left half is as bright as one factor, and all of them as the other."""
    generator = torch.Generator().manual_seed(1)
    made = torch.rand(n, 2, generator=generator)
    images = made[:, 0, None, None, None].expand(n, 1, 8, 8).clone() / 2
    images[..., :4] += made[:, 1, None, None, None] / 2
    return ImageData("halves", images, made if factors is None else factors(made), names)


def test_an_evaluation_says_how_closely(fit):
    data = pictures()
    found = ng.evaluate(fit, data)
    records.check(records.CheckedMetrics, dict(found), "here")
    loc = diagnostics.codes(fit, data).loc
    table = np.abs(np.corrcoef(loc.T, data.factors.T)[:3, 3:])
    for one, row in zip(found["correlations"], table, strict=True):
        assert [one["bright"], one["left"]] == pytest.approx(row, abs=1e-5)
        assert list(one.values()) == sorted(one.values(), reverse=True)
    rows = diagnostics.most_informative_first(found)
    assert all(row["followed"].correlations == found["correlations"][row["latent"]] for row in rows)
    latents = fit.latents(data)
    assert latents["closest factor"].tolist() == [row["followed"].closest[0][0] for row in rows]
    assert latents["|correlation|"].max() == pytest.approx(table.max(), abs=1e-5)


@pytest.mark.parametrize(
    "data",
    [
        ImageData("unknown", pictures().images),
        pictures(49),
        pictures(names=("label",), factors=lambda made: (9 * made[:, :1]).floor()),
        pictures(factors=torch.ones_like),
    ],
    ids=["unknown", "few", "label", "constant"],
)
def test_nothing_is_said_where_too_little_is_known(fit, data):
    found = ng.evaluate(fit, data)
    assert "correlations" not in found
    rows = diagnostics.most_informative_first(found)
    assert not any("followed" in row for row in rows)
    assert diagnostics.remarks(rows, range(3)) == {}
    assert "closest factor" not in fit.latents(data)


def test_factors_of_any_size_and_any_name(fit):
    usual = ng.evaluate(fit, pictures())["correlations"]
    huge = pictures(factors=lambda made: made * torch.tensor([1e30, 1e-30]), names=("\n", "$x$"))
    found = ng.evaluate(fit, huge)["correlations"]
    for one, other in zip(found, usual, strict=True):
        assert one == pytest.approx({"\n": other["bright"], "$x$": other["left"]}, abs=1e-5)


# Where it is said -----------------------------------------------------------------------------


def test_the_figure_of_traversals_names_factors(fit):
    data = pictures()
    numbers = measured([0.9, 0.8, 0.1])
    numbers["correlations"] = [
        {"left": 0.93, "bright": 0.1},
        {"bright": 0.61, "a_very_long_name_of_one": 0.52},
        {"left": 0.99},
    ]
    ax = plots.traversals(fit, data, numbers, ax=Figure().add_subplot())
    said = texts(ax)
    assert {"z0 left 0.93", "z1 bright 0.61\na_very_lo…_one 0.52", "z2"} <= set(said)
    # One that leaks has something to say, one that follows none has not.
    numbers = {**measured([0.9, 0.8, 0.1], leaking=[2]), "correlations": [{"$x$": 0.1}] * 2}
    numbers["correlations"].append({"$x$": 0.9})
    said = texts(plots.traversals(fit, data, numbers, ax=Figure().add_subplot()))
    assert {"z0", "z1", r"z2 \$x\$ 0.90"} <= set(said)
    said = texts(fit.plot.traversals(data, [1], ax=Figure().add_subplot()))
    assert sum(text.startswith("z1") for text in said) == 1


def test_names_do_not_run_into_each_other(fit):
    numbers = measured([0.9] * 3)
    two = {"background": 0.61, "circumference_": 0.52}
    numbers["correlations"] = [two, two, two]
    ax = plots.traversals(fit, pictures(), numbers)
    figure = ax.figure
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
    picture = ax.images[0].get_window_extent()
    assert not any(picture.overlaps(box) for box in boxes)
    # The images keep their size, to a tenth.
    plain = plots.traversals(fit, pictures(), measured([0.9] * 3))
    plain.figure.canvas.draw()
    width = plain.images[0].get_window_extent().width
    assert picture.width == pytest.approx(width, rel=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    with undrawn():
        ngvae("train", "normal_gamma", "relaxed", "--out", path, *SHORT, "--set", "data.size=500")
    return path


@pytest.fixture
def edited(run, tmp_path):
    """A copy of the run with two informative latents, one that leaks, and these metrics."""

    def edit(**changes):
        path = tmp_path / "run"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(run, path)
        finding = {"kind": "leaking", "text": "", "reason": "", "latents": [2], "changes": {}}
        known = {
            "probs": [0.9, 0.8, 0.1, 0.1],
            "kl": {"z": {"total": 3.0, "per_latent": [2.0, 1.0, 0.0, 0.0]}},
            "verdict": {"settled": False, "findings": [finding]},
            "informative": 2,
        }
        values = {**json.loads((run / "metrics.json").read_text()), **known, **changes}
        (path / "metrics.json").write_text(json.dumps(values))
        return path

    return edit


def test_a_run_keeps_what_is_followed(run):
    found = runs.load_metrics(run)["correlations"]
    names = set(sprites(1).factor_names)
    assert len(found) == 4 and all(set(one) == names for one in found)
    assert "Beside its name is the factor" in (run / "report.html").read_text()


def test_inspect_says_what_is_followed(edited):
    long = "n" * 200
    path = edited(
        correlations=[
            {"red": 0.93, "x": 0.1},
            {"size": 0.61, "y": 0.52},
            {"[bold]": 0.9},
            {long: 1.0},
        ]
    )
    lines = [line.strip() for line in ngvae("inspect", path).splitlines()]
    said = [line.split(maxsplit=1) for line in lines if line.startswith("z")]
    # Beside it stand the negentropy and the agreement of its axis.
    said = [[name, rest[0].split("  ")[0]] for name, *rest in said if rest]
    assert ["z0", "red 0.93"] in said and ["z1", "mixes size 0.61, y 0.52"] in said
    assert ["z2", "[bold] 0.90"] in said
    # The last one carries nothing.
    assert long[:20] not in " ".join(lines)
    path = edited(correlations=[{long: 0.9}] * 4)
    table, _, _ = ngvae("inspect", path).partition("follows: ")
    assert (
        "nnnn" in table and max(map(len, table.partition("latent  follows")[2].splitlines())) <= 80
    )


def test_inspect_says_nothing_of_older_runs(edited):
    for changes in ({"correlations": None}, {}):
        path = edited(**changes)
        values = json.loads((path / "metrics.json").read_text())
        if not changes:
            del values["correlations"]
        (path / "metrics.json").write_text(json.dumps(values))
        said = ngvae("inspect", path)
        assert "follows" not in said and "2 of 4 latents are informative" in said


@pytest.mark.parametrize(
    ("correlations", "line"),
    [
        ([{"x": 0.5}] * 3, "correlations: expected 4 numbers, got 3"),
        ([{"x": 1.5}] * 4, "correlations"),
        ([{}] * 4, "correlations"),
        ([{"x": "much"}] * 4, "correlations"),
    ],
)
def test_correlations_that_are_none_are_refused(edited, correlations, line):
    path = edited(correlations=correlations)
    assert line in ngvae("inspect", path, code=2)
