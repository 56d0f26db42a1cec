"""How the count depends on the scale: the plateau, the folder, what is refused, the figure."""

import json
import signal

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support import SHORT, cut, ngvae, undrawn

import ngvae_pyro as ng
from ngvae_pyro import runs
from ngvae_pyro.errors import LONGEST, Notice, UserError
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.records import CheckedCurve
from ngvae_pyro.report import plots
from ngvae_pyro.runs import counting
from ngvae_pyro.runs.folder import read_json
from ngvae_pyro.specs import MLPSpec, ModelSpec, RelaxedGuideSpec

WORDS = SHORT[: SHORT.index("data.size=120") - 1] + SHORT[SHORT.index("data.size=120") + 1 :]


@pytest.mark.parametrize(
    ("counts", "own", "expected"),
    [
        ([5, 5, 5, 5, 5], 2, (5, 0, 4)),
        ([6, 5, 5, 5, 3], 2, (5, 1, 3)),
        ([5, 4, 3], 1, (4, 1, 1)),
        # Equally long ones: that with the own scale.
        ([6, 6, 5, 5, 4], 3, (5, 2, 3)),
        ([6, 6, 5, 5, 4], 1, (6, 0, 1)),
        # Or the nearest to it, or the first.
        ([7, 7, 6, 5, 4, 4], 3, (4, 4, 5)),
        ([7, 7, 6, 5, 5], 2, (7, 0, 1)),
        # The same count apart is two stretches, and so it is beside a training that diverged.
        ([5, 6, 5, 5, 6, 5], 0, (5, 2, 3)),
        ([5, None, 5, 4, 4], 2, (4, 3, 4)),
        ([None, 3, None], 1, (3, 1, 1)),
    ],
)
def test_the_plateau_is_the_longest_stretch(counts, own, expected):
    found = counting.plateau(counts, own)
    assert (found["informative"], found["first"], found["last"]) == expected


def curve(counts, own, scales=None, **classical):
    """A curve as it is written, from counts."""
    scales = scales or [0.02 * 2.0**i for i in range(len(counts))]
    values = {"two_nn": None, "mle": None, "components": None, **classical}
    return {
        "data": "x.npz",
        "latent_size": 10,
        "unit": 1.0,
        "units": "of a pixel in [0, 1]",
        "own": own,
        "scales": [
            {
                "factor": scale / scales[own],
                "scale": scale,
                "folder": None,
                "informative": count,
                "verdict": None if count is None else "settled" if i % 2 else "leaking",
                **dict.fromkeys(("leak", "mse", "elbo"), None if count is None else 0.5),
            }
            for i, (scale, count) in enumerate(zip(scales, counts, strict=True))
        ],
        "plateau": counting.plateau(counts, own),
        "classical": {"rows": 100, **values},
    }


def test_the_plateau_in_a_sentence():
    assert counting.sentence(curve([6, 5, 5, 5, 5], 2)) == (
        "5 latents between scales 0.04 and 0.32 (4 of 5 scales)"
    )
    alone = counting.sentence(curve([3, 1, 2], 1))
    assert alone == "1 latent at scale 0.04 only: no two neighbouring scales agree"
    assert counting.sentence(curve([4], 0)) == "4 latents at scale 0.02"
    said = counting.classical(curve([4], 0, two_nn=3.14159, components=7))
    assert said.endswith("TwoNN 3.1, maximum likelihood none, principal components for 95 % 7")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Vectors of four numbers that depend on two."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(120, 2))
    values = np.concatenate([z, z**2], 1) + 0.01 * rng.normal(size=(120, 4))
    path = tmp_path_factory.mktemp("data") / "vectors.npy"
    np.save(path, values)
    return path


@pytest.fixture(scope="module")
def done(vectors, tmp_path_factory):
    """A curve of three scales, what was said, and the command."""
    out = tmp_path_factory.mktemp("counts") / "one"
    words = ["count", vectors, "--out", out, *WORDS, "--factors", "1/2,2"]
    with undrawn():
        return out, words, ngvae(*words)


def test_a_folder_has_a_run_for_each_scale_and_the_curve(done):
    out, _, said = done
    found = read_json(out / "count.json", CheckedCurve)
    assert [one["factor"] for one in found["scales"]] == [0.5, 1.0, 2.0] and found["own"] == 1
    own = runs.load_run(out / "own", "cpu")[0].model.likelihood.scale
    assert found["scales"][1]["scale"] == own
    for one in found["scales"]:
        metrics = runs.load_metrics(out / one["folder"])
        assert one["informative"] == metrics["informative"] and one["elbo"] == metrics["elbo"]
        assert one["mse"] == metrics["reconstruction_mse"]
        spec = runs.load_spec(out / one["folder"]).model.likelihood
        assert spec.scale == ("auto" if one["factor"] == 1.0 else one["scale"])
        assert abs(one["scale"] / (one["factor"] * own) - 1.0) < 0.006
    assert found["classical"]["rows"] == 108 and 1.0 < found["classical"]["mle"] < 4.0
    assert counting.sentence(found) in said and "in standard deviations of a column" in said
    assert (out / "count.png").stat().st_size > 10_000


def test_finished_scales_are_not_trained_again(done, monkeypatch):
    out, words, said = done
    before = (out / "count.json").read_bytes()
    cut(monkeypatch, after=0)
    again = ngvae(*words)
    assert (out / "count.json").read_bytes() == before
    assert again.partition("MSE")[2] == said.partition("MSE")[2]


def test_an_interrupted_curve_goes_on(done, vectors, tmp_path, monkeypatch):
    out, words = tmp_path / "two", list(done[1])
    words[words.index(done[0])] = out
    with undrawn():
        with monkeypatch.context() as patch:
            # In the second of the three trainings, when its folder is there.
            left = [2]

            def heed(trainer, now=False):
                left[0] -= runs.finished(out / "own") and not now
                if left[0] < 0:
                    raise Interrupted(signal.SIGTERM)

            patch.setattr("ngvae_pyro.training.trainer.Trainer.heed", heed)
            said = ngvae(*words, code=143)
        assert "1/3  scale" in said and not (out / "count.json").exists()
        assert runs.finished(out / "own") and sum(map(runs.unfinished, out.iterdir())) == 1
        trained = (out / "own" / "weights.safetensors").stat().st_mtime_ns
        ngvae(*words)
    assert (out / "own" / "weights.safetensors").stat().st_mtime_ns == trained
    both = [read_json(folder / "count.json", CheckedCurve) for folder in (out, done[0])]
    assert both[0] == both[1]


def test_another_run_in_the_folder_is_refused(done, vectors, tmp_path):
    out, words, _ = done
    said = ngvae(*words, "--steps", "5", code=2)
    assert said == f"{out}/own: holds a run with fit.steps = 6, not 5; choose another --out"
    other = tmp_path / "mine"
    other.mkdir()
    (other / "count.png").write_text("mine")
    words = ["count", vectors, "--out", other, *WORDS]
    assert "count.png: is not of a count, and is not replaced" in ngvae(*words, code=2)
    assert [path.name for path in other.iterdir() if path.suffix == ".png"] == ["count.png"]


def test_images_of_0_and_1_have_no_scale(tmp_path):
    np.savez(tmp_path / "x.npz", imgs=np.eye(8, dtype=np.uint8)[None].repeat(40, 0) * 255)
    said = ngvae("count", tmp_path / "x.npz", "--out", tmp_path / "c", *WORDS, code=2)
    assert "its images hold only 0 and 1, and the likelihood bernoulli has no scale" in said
    assert f"ngvae train normal_gamma relaxed --data {tmp_path}/x.npz counts once" in said
    assert not (tmp_path / "c").exists()
    # An array has no name by which a command would find it.
    with pytest.raises(UserError, match=r"; ngvae_pyro\.NGVAE\(\)\.fit\(images\) counts once$"):
        ng.count(np.eye(8, dtype=bool)[None].repeat(40, 0), progress=False)


@pytest.mark.parametrize(
    ("factors", "line"),
    [
        ("2,x", "--factors: expected numbers or fractions with commas between, e.g. 1/2,2, got x"),
        ("1/0", "got 1/0"),
        ("1,2", "factors: expected numbers above 0, different from each other and from 1"),
        ("2,2", "got 2 and 2"),
        ("-2", "got -2.0"),
        ("nan", "got nan"),
    ],
)
def test_factors_that_are_refused(vectors, tmp_path, factors, line):
    words = ["count", vectors, "--out", tmp_path / "c", *WORDS]
    assert line in ngvae(*words, "--factors", factors, code=2)
    assert not (tmp_path / "c").exists()


def small(**changes):
    network = {"width": 8, "depth": 1}
    pair = ModelSpec(decoder=MLPSpec(**network)), RelaxedGuideSpec(encoder=MLPSpec(**network))
    options = {"steps": 3, "latent_size": 3, "device": "cpu", "factors": [2.0]}
    return {"model": pair[0], "guide": pair[1], **options, **changes}


def greys():
    """Spots of any range, whose place and brightness vary."""
    rng = np.random.default_rng(1)
    at, light = rng.uniform(1, 6, (60, 2)), rng.uniform(20, 100, 60)
    grid = np.arange(8)
    rows, columns = ((grid - at[:, [i]]) ** 2 for i in range(2))
    return light[:, None, None] * np.exp(-0.5 * (rows[:, :, None] + columns[:, None, :]))


def test_arrays_in_python_with_and_without_a_folder(tmp_path, monkeypatch):
    images = greys()
    kept = ng.count(images, **small())
    assert "files" not in kept and all(one["folder"] is None for one in kept["scales"])
    assert kept["units"] == "in the units of the data"
    assert kept["unit"] == pytest.approx(np.ptp(images))
    with undrawn():
        written = ng.count(images, out=tmp_path / "c", **small())
        # Its runs know that no file leads to their images.
        assert runs.load_spec(tmp_path / "c" / "own").images == "given in Python"
        cut(monkeypatch, after=0)
        assert ng.count(images, out=tmp_path / "c", **small()) == written
        # Another factor is a training that can be interrupted.
        with pytest.raises(Interrupted):
            ng.count(images, out=tmp_path / "c", **small(factors=[2.0, 4.0]))
        with pytest.raises(UserError, match="own: its training images are not those that"):
            ng.count(images[::-1].copy(), out=tmp_path / "c", **small())
    assert [one["informative"] for one in written["scales"]] == [
        one["informative"] for one in kept["scales"]
    ]
    # The scale at which it ended was the own one in both.
    assert written["scales"][0]["scale"] == pytest.approx(kept["scales"][0]["scale"])


def test_scales_finer_than_any_are_left_out():
    with pytest.warns(Notice, match=r"^scale .*e-06, 1e-05 of the own one, is left out"):
        found = ng.count(greys(), **small(factors=[1e-5, 2.0]))
    assert [one["factor"] for one in found["scales"]] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"factors": 2.0}, "factors: expected numbers above 0, .*, got 2.0"),
        ({"factors": ["2"]}, "factors: expected numbers above 0, .*, got '2'"),
        ({"latent_size": 0}, "latent_size: expected a whole number, at least 1, got 0"),
        ({"steps": 1.5}, "steps: expected a whole number"),
        ({"seed": -1}, r"seed: expected a whole number in \[0, 2\*\*32\), got -1"),
        ({"out": 3}, "out: expected the name of a folder, or None, got 3"),
        ({"out": "\udcff"}, r"folder: expected a name that UTF-8 can write, got '.udcff'"),
        ({"factors": [10**400]}, "factors: expected numbers above 0, .*, got 1000"),
        ({"factors": [float("nan")]}, "factors: expected numbers above 0, .*, got nan"),
        ({"guide": "gaussian"}, "gaussian"),
        ({"guide": ng.ModelSpec()}, "guide: expected a name, .* spec of a guide, got a ModelSpec"),
        ({"model": RelaxedGuideSpec()}, "model: expected a name, .* of a model, got a RelaxedGui"),
        ({"model": "a\nb" + 5000 * "x"}, r"unknown model 'a.nbxxx.* \.\.\. .*\.toml file\)$"),
    ],
)
def test_arguments_that_are_refused(changes, line):
    with pytest.raises(UserError, match=line) as caught:
        ng.count(greys(), **small(**changes))
    assert str(caught.value).isprintable() and len(str(caught.value)) <= LONGEST


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"own": 9}, "own: expected a number below 3, got 9"),
        ({"plateau": {"informative": 5, "first": 2, "last": 3}}, "expected first <= last < 3"),
        ({"plateau": {"informative": 4, "first": 0, "last": 1}}, "expected 4 at scale 0.02, got 5"),
        ({"scales": []}, "scales"),
        ({"unit": 0.0}, "unit"),
    ],
)
def test_a_damaged_curve_is_one_line(tmp_path, change, line):
    path = tmp_path / "count.json"
    path.write_text(json.dumps(curve([5, 5, 6], 1)))
    assert read_json(path, CheckedCurve)["plateau"]["last"] == 1
    path.write_text(json.dumps({**curve([5, 5, 6], 1), **change}))
    with pytest.raises(UserError, match=line) as caught:
        read_json(path, CheckedCurve)
    assert "\n" not in str(caught.value)


def test_the_figure_has_the_plateau_and_the_estimates_in_view(tmp_path):
    drawn = curve([6, 5, 5, None, 3], 1, two_nn=4.5, mle=4.6, components=30)
    ax = plots.counts(drawn, Figure(layout="constrained").add_subplot())
    texts = [text.get_text() for text in ax.texts]
    assert "plateau: 5" in texts and "TwoNN, 4.5" in texts and "max. likelihood, 4.6" in texts
    # That of 30 is out of view.
    assert not any("components" in text for text in texts)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["own scale, 0.04", "settled", "not settled"]
    plots.save(ax, tmp_path / "x.png")
    alone = plots.counts(curve([3], 0), Figure().add_subplot())
    assert not any("plateau" in text.get_text() for text in alone.texts)
    with pytest.raises(UserError, match="curve: expected the result of ngvae_pyro.count, got"):
        plots.counts([1, 2])


def test_estimates_are_of_few_numbers(monkeypatch):
    images = ng.ImageData("x", torch.rand(50, 1, 4, 4, generator=torch.manual_seed(0)))
    assert counting.estimates(images)["rows"] == 50
    assert counting.estimates(images, rows=30)["rows"] == 30
    monkeypatch.setattr(counting, "NUMBERS", 16 * 25)
    found = counting.estimates(images)
    assert found["rows"] == 25 and found["mle"] > 1
    # Equal images have no neighbours at a distance.
    same = ng.ImageData("same", torch.ones(30, 1, 4, 4))
    assert counting.estimates(same) == {"rows": 25, "two_nn": None, "mle": None, "components": 0}
