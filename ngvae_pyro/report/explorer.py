"""The explorer of a run's report: a slider for each informative latent, and the image they make.

The page holds the decoder's weights and computes E[x | z] itself, so that all latents can move at
once without any network access. It supports the decoders
of :class:`ngvae_pyro.specs.SeparableSpec` and :class:`ngvae_pyro.specs.MLPSpec`. For any other, or
one that is too large for a page, it holds images decoded beforehand instead, with one latent moved
at a time.
"""

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.evaluation.diagnostics import Metrics, most_informative_first
from ngvae_pyro.evaluation.traversals import Support, typical, walk
from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import Fit
from ngvae_pyro.latents import is_informative
from ngvae_pyro.likelihoods import CountsLikelihood
from ngvae_pyro.nn import Decoder, Products, ResidualLayer, SumOfProducts
from ngvae_pyro.report.plots import ROWS, are_curves, brightest, in_colours

# Largest size of the explorer's data in the page, including base64.
BYTES = 5_000_000
# How many images there are to start from.
BASES = 3
# Steps of a slider if the page decodes; otherwise the number of images per slider, the largest of
# these that fits.
STEPS, FRAMES = 100, (25, 17, 9)
# How far the page's numbers may be from torch's, and at how many random places around each base
# image this is checked. Half of the smallest visible step of a pixel, because places that were not
# checked may differ more. For a default decoder 16-bit integers differ by 0.04/255, bytes would by
# 11/255.
CLOSE, PLACES = 0.5 / 255, 100
MOST = 2**15 - 1
# Columns of vectors whose units differ by more than this factor do not share an axis.
UNITS_ALIKE = 10.0


@dataclass(frozen=True)
class Slider:
    """One latent on the page: its number, and the factor that it follows ("" for none)."""

    latent: int
    label: str


@dataclass(frozen=True)
class Explorer:
    """The explorer's part of the page of a run.

    Attributes:
        sliders: The sliders, most informative latent first.
        texts: Notes below it, above all on what it does not show.
        data: The data for its script; None if the explorer is left out, which a text then explains.
        what: What one starts from, an image or a vector.
    """

    sliders: tuple[Slider, ...]
    texts: tuple[str, ...]
    data: dict[str, Any] | None
    what: str = "image"

    @property
    def names_width(self) -> float:
        """The width needed for the names of the sliders, in rem."""
        return max([3.0, *(min(0.55 * len(slider.label), 8.0) for slider in self.sliders)])

    @property
    def script(self) -> str:
        """The script of the page, ``explorer.js``."""
        path = Path(__file__).parent / "templates" / "explorer.js"
        return path.read_text(encoding="utf-8")

    @property
    def script_source(self) -> str:
        """The hash of the only script that the page's content security policy allows."""
        digest = hashlib.sha256(self.script.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@dataclass(frozen=True)
class Layer:
    """A linear layer W x + b in integers: W_ij = scale_i weights_ij.

    Attributes:
        weights: (outputs, inputs), int16; the largest magnitude in each row is 32,767.
        scale: (outputs,), float32.
        bias: (outputs,), float32.
    """

    weights: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weights.size

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> "Layer":
        """Convert a float layer."""
        assert bias is not None
        values = weight.detach().double().cpu().numpy()
        # For a row of zeros any positive scale will do.
        scale = np.maximum(np.abs(values).max(1), 1e-30) / MOST
        whole = np.rint(values / scale[:, None]).astype("<i2")
        return cls(whole, scale.astype("<f4"), bias.detach().cpu().numpy().astype("<f4"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Apply the layer to inputs (N, inputs), as the page does."""
        weights: np.ndarray = self.weights * self.scale[:, None]
        return x @ weights.T + self.bias

    def packed(self) -> dict[str, str]:
        """The arrays for JSON: their bytes, little-endian and row by row, in base64."""
        parts = {"weights": self.weights, "scale": self.scale, "bias": self.bias}
        return {name: _base64(part.tobytes()) for name, part in parts.items()}


@dataclass(frozen=True)
class WholeImages:
    """The last layer of a decoder by products, :class:`ngvae_pyro.nn.SumOfProducts`, in integers.

    Attributes:
        factors: The linear layers of rows, of columns, and of channels where there are several.
        rank: Number of products.
        bias: (channels * H * W,), float32, the decoder's and the mean image.
    """

    factors: tuple[Layer, ...]
    rank: int
    bias: np.ndarray

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(factor.size for factor in self.factors)

    @classmethod
    def of(cls, part: SumOfProducts, loc: Tensor, unit: float) -> "WholeImages":
        """Convert a float layer, its outputs times unit and plus the image loc."""
        linear = [_layer(part.columns), *([_layer(part.channels)] if part.channels else [])]
        bias = (loc + unit * part.bias).detach().flatten().cpu().numpy().astype("<f4")
        return cls((_layer(part.rows, unit=unit), *linear), part.rank, bias)

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """Apply the layer to features (N, width), as the page does."""
        rows, columns, *channels = (factor(h) for factor in self.factors)
        rows = rows.reshape(len(h), -1, self.rank) / np.sqrt(self.rank)
        columns = columns.reshape(len(h), self.rank, -1)
        of_channels = channels[0] if channels else np.ones((len(h), self.rank))
        of_channels = of_channels.reshape(len(h), -1, 1, self.rank)
        found: np.ndarray = (of_channels * rows[:, None]) @ columns[:, None]
        return found.reshape(len(h), -1) + self.bias

    def packed(self) -> dict[str, Any]:
        """What the page has of it, for JSON."""
        factors = [factor.packed() for factor in self.factors]
        return {"factors": factors, "rank": self.rank, "bias": _base64(self.bias.tobytes())}


@dataclass(frozen=True)
class WholeAndPatches:
    """The last layer of the default decoder, :class:`ngvae_pyro.nn.Products`, in integers.

    Attributes:
        whole: The sum of products.
        factors: The linear layers of the features' rows, columns and channels.
        conv: The convolution, its kernels (F, F * 9) as the rows of a layer.
        out: The linear layer from features to patches.
        grid: Rows and columns of patches.
        patch: Height and width of one.
        shape: (C, H, W) of the images.
    """

    whole: WholeImages
    factors: tuple[Layer, ...]
    conv: Layer
    out: Layer
    grid: tuple[int, int]
    patch: tuple[int, int]
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Number of weights."""
        layers = (*self.factors, self.conv, self.out)
        return self.whole.size + sum(layer.size for layer in layers)

    @classmethod
    def of(cls, part: Products, loc: Tensor, unit: float) -> "WholeAndPatches":
        """Convert a float layer, its outputs times unit and plus the image loc."""
        factors = tuple(map(_layer, (part.rows, part.columns, part.channels)))
        kernels = Layer.of(part.conv.weight.flatten(1), part.conv.bias)
        grid, patch = ((pair[0], pair[1]) for pair in (part.patches.grid, part.patches.patch))
        shape = (part.patches.channels, part.patches.sides[0], part.patches.sides[1])
        whole = WholeImages.of(part.whole, loc, unit)
        return cls(whole, factors, kernels, _layer(part.out, unit=unit), grid, patch, shape)

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """Apply the layer to features (N, width), as the page does."""
        size = len(self.conv.bias)
        rows, columns, channels = (factor(h) for factor in self.factors)
        rows = rows.reshape(len(h), -1, 1, size) / np.sqrt(size)
        products = rows * columns.reshape(len(h), 1, -1, size)
        f = products @ channels.reshape(len(h), 1, size, size)
        # Windows (N, rows, columns, F, 3, 3) of the cells around each.
        padded = np.pad(_silu(f), ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        f = f + self.conv(windows.reshape(*f.shape[:3], -1))
        colours, height, width = self.shape
        parts = self.out(_silu(f)).reshape(len(h), *self.grid, *self.patch, colours)
        tiled = parts.transpose(0, 5, 1, 3, 2, 4).reshape(
            len(h), colours, self.grid[0] * self.patch[0], -1
        )
        found: np.ndarray = tiled[:, :, :height, :width].reshape(len(h), -1)
        return found + self.whole(h)

    def packed(self) -> dict[str, Any]:
        """What the page has of it, for JSON."""
        return {
            "whole": self.whole.packed(),
            "features": [factor.packed() for factor in self.factors],
            "conv": self.conv.packed(),
            "out": self.out.packed(),
            "grid": self.grid,
            "patch": self.patch,
        }


def _layer(part: nn.Linear, loc: Tensor | float = 0.0, unit: float = 1.0) -> Layer:
    """A float layer, its outputs times unit and plus loc."""
    return Layer.of(unit * part.weight, loc + unit * part.bias)


# What the last layer of a decoder in the page may be.
AnyLayer = Layer | WholeImages | WholeAndPatches


@torch.no_grad()
def explore(
    fit: Fit, data: ImageData, metrics: Metrics, support: Support | None = None
) -> Explorer | None:
    """Make the explorer of a trained pair.

    A slider goes as far as the traversals of the report do
    (:meth:`ngvae_pyro.evaluation.traversals.Support.reach`): to where the data end if this latent
    alone moves from the chosen image. Latents without a slider stay at that image's posterior
    means. Images are shown as in the figures, in the model's units and clamped to [0, 1]; vectors
    and sequences are curves, in their own units if the columns of vectors have similar ones.

    Args:
        fit: The trained pair.
        data: Held-out images, which give the ranges and the images to start from.
        metrics: From :func:`ngvae_pyro.evaluate`; they tell which latents are informative, and
            which factors they follow if these are known.
        support: The support of the images, if already computed.

    Returns:
        The explorer, or None if no latent is informative.
    """
    rows = [row for row in most_informative_first(metrics) if is_informative(row["probs"])]
    if not rows:
        return None
    if fit.form.depth:
        return Explorer((), ("There is no explorer, because a page does not draw volumes.",), None)
    latents = [row["latent"] for row in rows[:ROWS]]
    labels = (row["followed"].text if "followed" in row else "" for row in rows)
    sliders = tuple(map(Slider, latents, labels))
    support = support or Support.of(fit, data)
    numbers = typical(support.loc, min(BASES, len(data)))
    reach = [[support.reach(fit, k, base) for k in latents] for base in numbers]
    page: dict[str, Any] = {
        "shape": fit.model.image_shape,
        "latents": latents,
        "bases": [
            {
                "z": support.loc[base].tolist(),
                "low": [low for low, _ in spans],
                "high": [high for _, high in spans],
            }
            for base, spans in zip(numbers, reach, strict=True)
        ],
    }
    what = "vector" if are_curves(data.images) else "image"
    what = "sequence" if fit.form.sequential else what
    rest = _of_the_rest(len(rows), len(latents), fit.model.latent_size, what)
    ends = f"Each slider ends where the data end if only its latent moves from the chosen {what}."
    kind = fit.model.spec.decoder.kind
    # Of a model of one's own the spec says nothing of what decodes.
    own = kind == "own" or not isinstance(fit.model.decoder, Decoder)
    why = f"the decoder is {'one of your own' if own else 'convolutional'}"
    if not own and kind in ("mlp", "separable"):
        z = _places(support.loc[numbers], latents, torch.tensor(reach))
        weights, note = _weights(fit, z, page)
        if weights is not None:
            leave = f" Moving several together may leave the data, where {what}s break up."
            return Explorer(sliders, (f"{ends}{leave}{rest}", note), weights, what)
        why = note
    if what != "image":
        return Explorer((), (f"There is no explorer, because {why}.",), None)
    for frames in FRAMES:
        strips = _strips(fit, support, latents, numbers, frames)
        beforehand = {**page, "steps": frames - 1, "strips": strips}
        if _size(beforehand) <= BYTES:
            note = (
                "One latent moves at a time, and the others return to the chosen image: "
                f"because {why}, the page holds {frames} images of each latent, decoded beforehand."
            )
            return Explorer(sliders, (f"{ends}{rest}", note), beforehand)
    note = f"There is no explorer, because {why}, and images of all latents would exceed 5 MB."
    return Explorer((), (note,), None)


def _of_the_rest(informative: int, shown: int, size: int, what: str) -> str:
    text = ""
    if informative > shown:
        text += f" These are the {shown} most informative of {informative} informative latents."
    if rest := size - shown:
        others = "latent stays as it is" if rest == 1 else f"{rest} latents stay as they are"
        text += f" The other {others} in that {what}."
    return text


def _places(own: Tensor, latents: list[int], reach: Tensor) -> Tensor:
    """Latents (N, K) that sliders can reach from the base images (B, K), within reach (B, L, 2).

    These are each base image, both ends of each slider alone, and random positions of all sliders.
    """
    generator = torch.Generator().manual_seed(0)
    found = [own]
    for z, spans in zip(own, reach.to(own.dtype), strict=True):
        low, high = spans.unbind(-1)
        alone = z.repeat(2 * len(latents), 1)
        for i, k in enumerate(latents):
            alone[2 * i, k], alone[2 * i + 1, k] = low[i], high[i]
        together = z.repeat(PLACES, 1)
        share = torch.rand(PLACES, len(latents), generator=generator, dtype=own.dtype)
        together[:, latents] = low + (high - low) * share
        found += [alone, together]
    return torch.cat(found)


# The decoder in the page ------------------------------------------------------------------------


def layers_of(decoder: Decoder) -> list[AnyLayer]:
    """The layers of a perceptron or a decoder by products, from the latents to the image.

    In h + silu(W (gain norm(h) + shift) + b), the gain and the shift are absorbed into W and b.
    """
    # With covariates, at their reference.
    own = decoder.conditioning
    begin = 0.0 if own is None else own.weight @ own.reference
    layers: list[AnyLayer] = [_layer(decoder.stem, begin)]
    # The last layer makes them.
    loc, unit = decoder.loc, decoder.unit.item()
    if decoder.of_logits:
        loc, unit = torch.zeros_like(loc), 1.0
    for part in decoder.trunk.children():
        if isinstance(part, ResidualLayer):
            weight, bias = part.linear.weight, part.linear.bias
            layers.append(Layer.of(weight * part.norm.weight, bias + weight @ part.norm.bias))
        elif isinstance(part, nn.Linear):
            layers.append(_layer(part, loc.flatten(), unit))
        elif isinstance(part, SumOfProducts):
            layers.append(WholeImages.of(part, loc, unit))
        elif isinstance(part, Products):
            layers.append(WholeAndPatches.of(part, loc, unit))
    return layers


def decode(layers: list[AnyLayer], z: np.ndarray) -> np.ndarray:
    """Decode latents (N, K) to (N, D) with the arithmetic of ``explorer.js``."""
    h = _silu(layers[0](z))
    for layer in layers[1:-1]:
        centred = h - h.mean(1, keepdims=True)
        h = h + _silu(layer(centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)))
    return layers[-1](h)


def _silu(x: np.ndarray) -> np.ndarray:
    # By tanh, which never overflows.
    return 0.5 * x * (1.0 + np.tanh(0.5 * x))


def _weights(fit: Fit, z: Tensor, page: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The page's data including the decoder, with a note on it, or None and the reason."""
    likelihood = fit.model.likelihood
    if likelihood.family in ("categorical", "own"):
        return None, f"a page does not compute the means of the likelihood {likelihood.family}"
    layers = layers_of(fit.model.decoder)
    count = sum(layer.size for layer in layers)
    # Two bytes each, and base64 takes four letters for three bytes.
    if (size := 8 / 3 * count) > BYTES:
        return None, f"the weights of the decoder would be {size / 1e6:.0f} MB"
    output = torch.from_numpy(decode(layers, z.double().numpy()))
    with evaluating(fit.model):
        expected = fit.model.decoder(z.to(fit.device)).cpu().double()
        # In float64: the mean of a continuous Bernoulli is a difference of large numbers.
        truth, means = (
            likelihood(x.view_as(expected).to(fit.device)).mean.cpu() for x in (expected, output)
        )
    curves = are_curves(truth)
    white = brightest(fit, truth)
    apart = (means - truth) / white
    if not curves:
        apart = (means / white).clamp(0, 1) - (truth / white).clamp(0, 1)
    worst = apart.abs().max().item()
    if not worst <= CLOSE:
        return None, f"16-bit weights would change what is decoded by {255 * worst:.1f}/255"
    times = likelihood.typical.item() if isinstance(likelihood, CountsLikelihood) else 1.0
    found = {
        **page,
        "steps": STEPS,
        "mean": likelihood.family,
        "times": times if curves else times / white,
        "layers": [layer.packed() for layer in layers],
    }
    unit = "of a pixel's range"
    if curves:
        found["curve"] = _curve(fit, truth)
        unit = f"of a {'channel' if fit.form.sequential else 'column'}'s standard deviation"
    if likelihood.spec.whole:
        unit = "of the largest count"
    if (size := _size(found)) > BYTES:
        return None, f"the weights of the decoder are {size / 1e6:.0f} MB"
    return found, (
        f"This page contains the decoder itself: {count:,} weights as 16-bit integers with a "
        f"scale for each row. At {len(z):,} places of the sliders its means were compared with "
        f"torch's, and differ by at most {255 * worst:.2f}/255 {unit}."
    )


def _curve(fit: Fit, truth: Tensor) -> dict[str, Any]:
    """The units in which the page draws curves, value = loc + scale mean, and their range."""
    what, place = ("channel", "position") if fit.form.sequential else ("column", "column")
    loc, scale, unit = np.zeros(1), np.ones(1), f"standard deviations from the mean of each {what}"
    own_loc, own_scale = fit.form.loc, fit.form.scale
    if own_loc is None or own_scale is None:
        unit = "value"
    elif fit.form.sequential or own_scale.max() <= UNITS_ALIKE * own_scale.min():
        loc, scale, unit = own_loc, own_scale, "value"
    size = (len(truth[0]), truth.shape[-1])
    loc, scale = (np.broadcast_to(part, size).ravel() for part in (loc, scale))
    values = loc + scale * truth.flatten(1).double().numpy()
    return {
        "loc": loc.tolist(),
        "scale": scale.tolist(),
        "low": float(values.min()),
        "high": float(values.max()),
        "unit": unit,
        "place": place,
    }


# Images decoded beforehand ----------------------------------------------------------------------


def _strips(
    fit: Fit, support: Support, latents: list[int], numbers: list[int], frames: int
) -> list[list[str]]:
    """PNGs as data URLs, one for each base image and latent.

    Each has its frames from the low to the high end one below the other, and the base image last.
    """
    found = []
    for base in numbers:
        images, _ = walk(fit, support, [[k] for k in latents], frames, base)
        own = fit.means(support.loc[base][None])
        white = brightest(fit, images)
        found.append([_png(torch.cat([row, own]) / white) for row in images])
    return found


def _png(images: Tensor) -> str:
    """Stack images (N, C, H, W) vertically into a PNG data URL."""
    with needed("images"):
        from PIL import Image

    pixels = (255.0 * in_colours(images.nan_to_num()).clamp(0, 1)).round().byte()
    strip = pixels.permute(0, 2, 3, 1).flatten(0, 1).numpy()
    file = io.BytesIO()
    Image.fromarray(strip.squeeze(-1) if strip.shape[-1] == 1 else strip).save(
        file, "PNG", optimize=True
    )
    return f"data:image/png;base64,{_base64(file.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _size(page: dict[str, Any]) -> int:
    return len(json.dumps(page))
