"""The explorer of a report: its decoder is torch's, it fits a page and a phone, and asks nobody."""

import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
from support import SMALL, Page, said_by, saved

import ngvae_pyro as ng
from ngvae_pyro import evaluation, runs
from ngvae_pyro.data.forms import standardising
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.fitted import Fit
from ngvae_pyro.nn import Products
from ngvae_pyro.report import explorer
from ngvae_pyro.report import pages as report
from ngvae_pyro.report.explorer import explore
from ngvae_pyro.specs import (
    ConvSpec,
    FitSpec,
    LikelihoodSpec,
    MLPSpec,
    ResidualConvSpec,
    RunSpec,
    SeparableSpec,
)

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
ON = [3, 0, 2]
WIDTHS = (390, 1280)


def built(data, decoder=SMALL, family="gaussian"):
    """A pair of 5 latents that was not trained, but whose decoded images differ visibly."""
    torch.manual_seed(0)
    likelihood = LikelihoodSpec(family=family)
    spec = {"latent_size": 5, "decoder": decoder, "likelihood": likelihood}
    model = ng.load_model("gaussian", data, **spec)
    guide = ng.load_guide("gaussian", model, encoder=SMALL)
    with torch.no_grad():
        model.decoder.stem.weight.mul_(3.0)
        for part in model.decoder.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.5, 0.5)
        if isinstance(model.decoder.trunk[-1], Products):
            torch.nn.init.normal_(model.decoder.trunk[-1].out.weight, std=0.1)
        layers = (getattr(part, "whole", part) for part in model.decoder.trunk)
        last = [layer for layer in layers if hasattr(layer, "bias")][-1]
        if family == "gaussian":
            last.bias.add_(0.5)
        else:
            getattr(last, "rows", last).weight.mul_(4.0)
        guide.encoder.head.weight.mul_(5.0)
    return Fit(model, guide, FitSpec(), form=data.form)


def measured(fit, data, on=ON):
    """Its metrics, by which some latents are informative, in this order."""
    metrics = ng.evaluate(fit, data)
    metrics["probs"] = [0.9 if k in on else 0.1 for k in range(5)]
    metrics["kl"]["z"]["per_latent"] = [9.0 - on.index(k) if k in on else 0.1 for k in range(5)]
    return metrics


@pytest.fixture(scope="module")
def data():
    return ng.sprites(120)


def images(channels, side=28):
    random = np.random.default_rng(0)
    return ImageData("noise", random.random((60, channels, side, side), dtype=np.float32))


def written(folder, fit, data, follows=None, on=ON):
    """The report of a fit, and its explorer; ``follows`` names the factors of some latents."""
    metrics = measured(fit, data, on)
    metrics.pop("correlations", None)
    if follows is not None:
        metrics["correlations"] = [{follows.get(k, "x"): 0.9} for k in range(len(metrics["probs"]))]
    found = explore(fit, data, metrics)
    spec = saved("gaussian+gaussian", image_shape=list(data.image_shape))
    return report.write_run_report(folder, spec, metrics, explorer=found), found


# In the page --------------------------------------------------------------------------------------


SCRIPT = """
addEventListener("load", async () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const all = (selector) => [...page.querySelectorAll(selector)];
    const picture = page.getElementById("explorer-picture");
    // Images that were decoded beforehand are awaited.
    while (page.getElementById("explorer").hidden) await new Promise((done) => setTimeout(done, 9));
    const look = () => {
      return {
        values: all(".slider output").map((output) => output.textContent),
        spoken: all(".slider input").map((input) => input.getAttribute("aria-valuetext")),
        seen: picture.localName === "canvas"
          ? [...picture.getContext("2d").getImageData(0, 0, picture.width, picture.height).data]
          : picture.querySelector(".now").getAttribute("d"),
      };
    };
    const move = (i, place) => {
      const input = all(".slider input")[i];
      input.value = place;
      input.dispatchEvent(new Event("input"));
    };
    const looks = [look()];
    for (const moves of MOVES) {
      for (const [i, place] of moves) move(i, place);
      looks.push(look());
    }
    page.getElementById("explorer-reset").click();
    looks.push(look());
    all('.explorer input[type="radio"]')[1].click();
    looks.push(look());
    const box = (element) => element.getBoundingClientRect();
    found.push({
      looks,
      width: root.clientWidth,
      needed: root.scrollWidth,
      shown: !page.getElementById("explorer").hidden,
      heights: all(".slider input, .choice, #explorer-reset").map((one) => box(one).height),
      tracks: all(".slider input").map((input) => box(input).width),
      right: Math.max(...all(".explorer *").map((one) => box(one).right)),
      sharp: frame.contentWindow.getComputedStyle(picture).imageRendering,
      asked: frame.contentWindow.performance.getEntriesByType("resource")
        .map((one) => one.name).filter((name) => !name.startsWith("data:")),
    });
  }
  document.body.textContent = JSON.stringify(found);
});
"""


def moved(tmp_path, path, moves):
    """What headless Chromium shows of a page, at two widths: as it opens, after each of some lists
    of moves (slider, place), after a reset, and from the second image.
    """
    source = html.escape(path.read_text(encoding="utf-8"))
    frames = "".join(
        f'<iframe style="width: {width}px; height: 700px; border: 0" srcdoc="{source}"></iframe>'
        for width in WIDTHS
    )
    script = SCRIPT.replace("MOVES", json.dumps(moves))
    return said_by(tmp_path, script, frames, 20_000)


def at(page, base, moves):
    """z (1, K) of the page's data where sliders were moved."""
    start = page["bases"][base]
    z = np.array(start["z"], np.float32)
    for i, place in moves:
        low, high = start["low"][i], start["high"][i]
        z[page["latents"][i]] = low + (high - low) * place / page["steps"]
    return z[None]


def pixels(fit, z):
    """Bytes (H, W, 3) of what a page is to show, before they are rounded."""
    (image,) = 255.0 * fit.means(torch.from_numpy(z)).clamp(0, 1).numpy()
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))


def shown(look, shape):
    return np.array(look["seen"], float).reshape(*shape[1:], 4)[..., :3]


@needs_chromium
@pytest.mark.parametrize(
    ("channels", "family", "decoder"),
    [
        (3, "gaussian", SMALL),
        (1, "bernoulli", SMALL),
        (1, "continuous_bernoulli", SMALL),
        (3, "gaussian", SeparableSpec(rank=4, width=16, depth=2)),
        (1, "bernoulli", SeparableSpec(rank=4, width=16, depth=2)),
    ],
)
def test_a_page_decodes_what_torch_does(tmp_path, channels, family, decoder):
    images_of = images(channels)
    fit = built(images_of, decoder, family)
    path, found = written(tmp_path, fit, images_of, {3: "a_name_without_a_break_" * 5})
    assert found.data["mean"] == family and found.data["steps"] == 100
    moves = [[(0, 100), (1, 0)], [(2, 77)]]
    narrow, wide = moved(tmp_path, path, moves)
    # Of the last one, torch's own float32 is off by 0.9/255 where the logit is near 0.
    within = 1.5 if family == "continuous_bernoulli" else 0.6
    places = [(0, []), (0, moves[0]), (0, moves[0] + moves[1]), (0, []), (1, [])]
    for page in (narrow, wide):
        for look, (base, done) in zip(page["looks"], places, strict=True):
            z = at(found.data, base, done)
            expected = pixels(fit, z)
            assert np.abs(shown(look, images_of.image_shape) - expected).max() <= within
            texts = [f"{v:z.2f}".replace("-", "−") for v in z[0, ON]]
            assert look["values"] == look["spoken"] == texts
        views = [shown(look, images_of.image_shape) for look in page["looks"]]
        # Else nothing was compared.
        assert all(np.abs(views[0] - views[i]).max() > 10.0 for i in (1, 2, 4))
        assert page["shown"] and page["sharp"] == "pixelated" and not page["asked"]
        assert page["needed"] <= page["width"] and page["right"] <= page["width"] + 0.5
        assert min(page["heights"]) >= 44 and min(page["tracks"]) >= 160
    assert narrow["width"] <= 390


@needs_chromium
@pytest.mark.parametrize("kind", [ConvSpec, ResidualConvSpec])
def test_a_convolutional_decoder_has_strips_of_one_latent_each(tmp_path, data, kind):
    fit = built(data, kind(channels=4, width=8))
    path, found = written(tmp_path, fit, data)
    assert "layers" not in found.data and "the decoder is convolutional" in found.texts[1]
    assert "One latent moves at a time" in Page(path).text
    last = found.data["steps"]
    moves = [[(0, last)], [(1, 0)]]
    for page in moved(tmp_path, path, moves):
        places = [(0, []), (0, moves[0]), (0, moves[1]), (0, []), (1, [])]
        for look, (base, done) in zip(page["looks"], places, strict=True):
            z = at(found.data, base, done)
            assert np.abs(shown(look, data.image_shape) - pixels(fit, z)).max() <= 0.6
            # The first slider went back when the second was moved.
            assert look["values"] == [f"{v:z.2f}".replace("-", "−") for v in z[0, ON]]
        seen = [look["seen"] for look in page["looks"]]
        assert seen[0] == seen[3] and seen[0] != seen[1] != seen[2]
        assert page["needed"] <= page["width"] and not page["asked"]


@pytest.mark.parametrize(
    ("spread", "own"), [([1.0, 2.0, 5.0, 3.0], True), ([1.0, 99, 1, 1], False), ([7.0], True)]
)
@needs_chromium
def test_vectors_are_curves_in_their_own_units(tmp_path, spread, own):
    vectors = np.random.default_rng(0).normal(size=(80, len(spread))) * spread + 50.0
    data = ImageData("vectors", vectors, form=standardising(vectors, "x"))
    fit = built(data)
    path, found = written(tmp_path, fit, data)
    curve = found.data["curve"]
    assert (curve["unit"] == "value") == own and "start from" in Page(path).text.lower()
    moves = [(0, 10), (2, 90)]
    for page in moved(tmp_path, path, [moves]):
        for look, done in zip(page["looks"][:2], ([], moves), strict=True):
            z = torch.from_numpy(at(found.data, 0, done))
            (values,) = fit.decode(z).numpy() if own else fit.means(z).flatten(1).numpy()
            points = np.array(re.findall(r"[ML]([-.\d]+),([-.\d]+)", look["seen"]), float)
            high, low = curve["high"], curve["low"]
            drawn = high - (high - low) * points[:, 1] / 100
            assert np.allclose(drawn, values, atol=2e-4 * (high - low))
            assert np.allclose(points[:, 0], np.linspace(0, 100, max(2, len(spread))), atol=0.01)
        assert page["looks"][0]["seen"] != page["looks"][1]["seen"]
        assert page["needed"] <= page["width"]


# What is in the page ------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [SMALL, SeparableSpec(rank=4, width=16, depth=2)])
@pytest.mark.parametrize("channels", [3, 1])
def test_layers_are_those_of_the_decoder(decoder, channels):
    fit = built(images(channels), decoder)
    layers = explorer.layers_of(fit.model.decoder)
    z = torch.randn(50, 5)
    expected = fit.means(z).flatten(1).numpy().clip(0, 1)
    found = explorer.decode(layers, z.numpy()).clip(0, 1)
    assert np.abs(found - expected).max() < explorer.CLOSE / 2
    # Without what the norm of a layer has learned, it is far off.
    part = fit.model.decoder.trunk[1]
    layers[1] = explorer.Layer.of(part.linear.weight, part.linear.bias)
    found = explorer.decode(layers, z.numpy()).clip(0, 1)
    assert np.abs(found - expected).max() > 20 * explorer.CLOSE


def test_sliders_are_those_of_informative_latents_and_named(tmp_path, data):
    path, found = written(tmp_path, built(data), data, {0: "</script><b>size"})
    assert [slider.latent for slider in found.sliders] == found.data["latents"] == ON
    page = Page(path)
    inputs = {attrs["id"]: attrs for attrs in page.all("input") if attrs["type"] == "range"}
    assert list(inputs) == [attrs["for"] for attrs in page.all("output")]
    assert list(inputs) == [attrs["for"] for attrs in page.all("label") if "for" in attrs]
    assert list(inputs) == [f"explorer-z{k}" for k in ON]
    assert "z0 </script><b>size" in page.text.replace("z0<", "z0 <") and not page.all("b")
    (picture,) = (attrs for attrs in page.all("canvas") if "id" in attrs)
    assert picture["role"] == "img" and picture["aria-label"]
    radios = [attrs["aria-label"] for attrs in page.all("input") if attrs["type"] == "radio"]
    assert radios == ["image 1", "image 2", "image 3"] and page.all("legend")
    assert "The other 2 latents stay as they are in that image." in page.text
    assert "Reset" in page.parts


def test_ranges_are_those_of_the_traversals(data):
    fit = built(data)
    page = explore(fit, data, measured(fit, data)).data
    for base, number in zip(
        page["bases"], ng.traversals.typical(fit_loc(fit, data), 3), strict=True
    ):
        assert base["z"] == pytest.approx(fit_loc(fit, data)[number].tolist())
        rows = fit.traverse(data.images, ON, steps=2, base=number)
        for i, row in enumerate(rows):
            for value, image in zip((base["low"][i], base["high"][i]), row, strict=True):
                z = np.array(base["z"], np.float32)
                z[ON[i]] = value
                assert np.allclose(fit.decode(z[None])[0], image, atol=1e-5)


def fit_loc(fit, data):
    return torch.from_numpy(fit.encode(data.images.numpy()))


def test_a_page_asks_nobody_and_runs_one_script(tmp_path, data):
    page = Page(written(tmp_path, built(data), data)[0])
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    script = re.search(r"<script>(.*?)</script>", page.source, re.DOTALL)[1]
    hashed = explorer.Explorer((), (), None).script_source
    assert f"script-src {hashed};" in policy and script == explorer.Explorer((), (), None).script
    assert [attrs.get("type") for attrs in page.all("script")] == ["application/json", None]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert not re.search(r"https?:|//cdn|fetch\(|XMLHttpRequest|import\(|WebSocket", page.source)
    assert all("src" not in attrs for _, attrs in page.tags)


@pytest.mark.parametrize("decoder", [ng.ModelSpec().decoder, MLPSpec(depth=8)])
def test_a_default_decoder_fits(data, decoder):
    fit = built(data, decoder)
    found = explore(fit, data, measured(fit, data))
    assert "layers" in found.data and len(json.dumps(found.data)) <= explorer.BYTES == 5_000_000


@pytest.mark.parametrize(
    ("name", "value", "why", "frames"),
    [
        ("CLOSE", 0.0, "16-bit weights would change what is decoded by", 25),
        ("BYTES", 1_400_000, "the weights of the decoder would be 2 MB", 25),
        ("BYTES", 400_000, "the weights of the decoder would be 2 MB", 9),
    ],
)
def test_weights_that_do_not_fit_become_strips(monkeypatch, data, name, value, why, frames):
    monkeypatch.setattr(explorer, name, value)
    fit = built(data, MLPSpec(width=256, depth=2))
    found = explore(fit, data, measured(fit, data))
    assert why in found.texts[1] and "layers" not in found.data
    assert found.data["steps"] == frames - 1 and f"{frames} images of each" in found.texts[1]
    assert len(json.dumps(found.data)) <= explorer.BYTES


def test_what_does_not_fit_at_all_is_left_out_in_a_line(monkeypatch, tmp_path, data):
    monkeypatch.setattr(explorer, "BYTES", 1000)
    path, found = written(tmp_path, built(data), data)
    page = Page(path)
    assert found.data is None and "There is no explorer, because" in page.text
    assert not page.all("script") and not page.all("canvas") and "script-src" not in page.source
    vectors = np.random.default_rng(0).normal(size=(40, 30))
    rows = ImageData("vectors", vectors)
    path, _ = written(tmp_path, built(rows), rows)
    assert "There is no explorer, because" in Page(path).text


def test_no_informative_latent_no_explorer(tmp_path, data):
    path, found = written(tmp_path, built(data), data, on=[])
    assert found is None and not Page(path).all("script")


def test_as_many_images_to_start_from_as_there_are(data):
    fit, few = built(data), data.subset([0, 1])
    assert len(explore(fit, few, measured(fit, few)).data["bases"]) == 2


def test_a_run_has_its_explorer_and_keeps_it_when_it_is_evaluated(tmp_path, monkeypatch, data):
    train, held_out = data.split(0.25, 0)
    fit = built(data)
    metrics = measured(fit, held_out)
    monkeypatch.setattr("ngvae_pyro.evaluation.diagnostics.measured", lambda *_, **options: metrics)
    monkeypatch.setattr("ngvae_pyro.report.plots.save_all", lambda *_: None)
    monkeypatch.setattr("ngvae_pyro.runs.evaluating.assess", lambda *_: {"source": "no images"})
    monkeypatch.setattr("ngvae_pyro.runs.evaluating.run_images", lambda *_: (train, held_out))
    spec = RunSpec(model_name="gaussian", guide_name="gaussian")
    runs.save_run(tmp_path / "run", fit, spec, held_out)
    pages = [Page(tmp_path / "run" / "report.html")]
    evaluation.evaluate_run(tmp_path / "run", "cpu")
    pages.append(Page(tmp_path / "run" / "report.html"))
    found = [re.search(r'id="explorer-data">(.*?)</script>', page.source)[1] for page in pages]
    assert found[0] == found[1] and json.loads(found[0])["latents"] == ON
