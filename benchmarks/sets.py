"""Data sets of which it is known how many numbers describe an image, or a vector.

    python benchmarks/sets.py crosses-noise05 --out crosses.npz
    ngvae train normal_gamma relaxed --data crosses.npz --out runs/crosses
    python benchmarks/sets.py --table

``SETS`` has them by name. A name is that of the pictures, and what is done to them: ``-faint60`` is
60 % of the contrast about a grey of one half, ``-noise05`` Gaussian noise with a standard deviation
of 0.05 in every pixel of [0, 1] (of vectors: of the standard deviation of all their entries),
``-2000`` that many training images instead of 20,000, ``-K30`` thirty latents instead of 15. Images
with noise are clipped to [0, 1] and rounded to bytes, as a camera does.

The truth is the number of coordinates that the images need, not of the factors that drew them: an
angle that goes all the way round is a circle, and a circle needs two. A class, such as the shape,
counts as one.

Sets that are *kept* are never used for a choice, of a default or of a rule; of the others some have
been. They are drawn by other code: those of other papers, written anew from what these say, and
three more. Sets that need a package of another author are there if it is installed:
``pip install -e ".[bench]"``.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

import kinds
import numpy as np

from ngvae_pyro.data.rendering import SPRITE_FACTORS, sprites
from ngvae_pyro.errors import UserError, nearest, one_line
from ngvae_pyro.files import whole

# Training images where a set says nothing else, and the fraction that `ngvae train` holds out.
SIZE, HELD_OUT = 20_000, 0.1
LATENTS = 15
# Images that are drawn at once.
CHUNK = 256
# (low, high), uniform; with a third number, as many values at equal distances.
Span = tuple[float, float] | tuple[float, float, int]
Factors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Set:
    """A data set with known truth.

    Attributes:
        name: Its name.
        truth: How many numbers describe an image.
        kept: Whether it is kept from every choice.
        about: What is drawn, and where from.
        draw: Images of some factors, (n, H, W) or (n, H, W, 3), in [0, 1] or bool, or vectors
            (n, D); None for sprites.
        spans: The range of each factor; of sprites the names are enough.
        note: Why the truth is not the number of factors, where it is not.
        noise: Standard deviation of the noise of a pixel.
        contrast: Of the images about a grey of one half.
        bernoulli: Whether ``draw`` gives probabilities, from which black and white are drawn.
        size: Number of training images.
        latents: Latents of the models.
        needs: The package of another author that draws it.
        circles: How many of the numbers are the second one of a circle.
    """

    name: str
    truth: int
    kept: bool
    about: str
    draw: Callable[[Factors], np.ndarray] | None
    spans: Mapping[str, Span]
    note: str = ""
    noise: float = 0.0
    contrast: float = 1.0
    bernoulli: bool = False
    size: int = SIZE
    latents: int = LATENTS
    needs: str = ""
    circles: int = 0

    @property
    def dimension(self) -> int:
        """Dimension of the surface on which the images lie, where a circle has one."""
        return self.truth - self.circles

    @property
    def total(self) -> int:
        """Images to render so that ``size`` are trained on and a tenth of all is held out."""
        return round(self.size / (1 - HELD_OUT))

    @property
    def strength(self) -> float:
        """Standard deviation of the noise in units of the contrast; of Bernoulli draws infinite."""
        return math.inf if self.bernoulli else self.noise / self.contrast

    def check(self) -> None:
        """Raise a UserError if the package that draws it, or one that it needs, is missing."""
        try:
            if self.needs:
                import_module(self.needs)
        except ImportError as error:
            raise UserError(
                f"{self.name}: needs {self.needs}, which cannot be imported "
                f"({one_line(error)}): pip install -e '.[bench]'"
            ) from error

    def render(
        self, n: int, seed: int = 0, hold: Sequence[str] = ()
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Images and their factors.

        Args:
            n: Number of images.
            seed: The same n and seed give the same factors and the same noise.
            hold: Factors that are held in the middle of their range; the others stay the same.

        Returns:
            Images as bytes, (n, H, W), (n, H, W, 3) or (n, 3, H, W), black and white as bool, or
            float32 vectors (n, D); and the values (n,) of each factor that varies.

        Raises:
            UserError: If a package is missing.
        """
        self.check()
        random = np.random.default_rng([seed, 1])
        if self.draw is None:
            data = sprites(n, seed=seed, vary=[name for name in self.spans if name not in hold])
            at = {name: i for i, name in enumerate(data.factor_names)}
            factors = {name: data.factors[:, at[name]].numpy() for name in self.spans}
            images = data.images.numpy()
            parts = (images[i : i + CHUNK] / np.float32(255) for i in range(0, n, CHUNK))
        else:
            uniform = np.random.default_rng(seed).random((len(self.spans), n))
            factors = {
                name: values(span, np.full(n, 0.5) if name in hold else column)
                for (name, span), column in zip(self.spans.items(), uniform, strict=True)
            }
            parts = (
                self.draw({name: column[i : i + CHUNK] for name, column in factors.items()})
                for i in range(0, n, CHUNK)
            )
        if self.vectors:
            found = np.concatenate(list(parts))
            if self.noise:
                found = found + self.noise * found.std() * random.standard_normal(found.shape)
            found = found.astype(np.float32)
        else:
            found = np.concatenate([self._seen(part, random) for part in parts])
        return found, {name: column for name, column in factors.items() if name not in hold}

    @property
    def vectors(self) -> bool:
        return self.draw in VECTORS

    def _seen(self, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """What a camera makes of images."""
        if self.bernoulli:
            return random.random(images.shape, np.float32) < images
        if images.dtype == bool:
            return images
        images = 0.5 * (1.0 - self.contrast) + self.contrast * images.astype(np.float32)
        if self.noise:
            images += self.noise * random.standard_normal(images.shape, np.float32)
        return np.round(255.0 * images.clip(0.0, 1.0)).astype(np.uint8)

    def save(self, path: str | Path, n: int | None = None, seed: int = 0) -> None:
        """Write the ``.npz`` that ``ngvae train --data`` reads, laid out as dSprites."""
        images, factors = self.render(n or self.total, seed)
        path = Path(path)
        with whole(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                imgs=images,
                latents_values=np.stack(list(factors.values()), 1),
                latents_names=np.array(list(factors)),
            )


def values(span: Span, uniform: np.ndarray) -> np.ndarray:
    """Values of a factor for uniform numbers in [0, 1)."""
    low, high, *count = span
    if count:
        uniform = np.floor(uniform * count[0]) / (count[0] - 1)
    return low + (high - low) * uniform


# Other people's data, written anew ---------------------------------------------------------------


def column(values: np.ndarray, axes: int = 2) -> np.ndarray:
    """(n,) as (n, 1, 1), so that it goes with images."""
    return values.reshape(-1, *[1] * axes)


def pixel_grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The centres of pixels in (0, 1), x and y of shape (1, side, side), y downwards."""
    at = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(at, at, indexing="ij")
    return x[None], y[None]


def soft(distance: np.ndarray, side: int) -> np.ndarray:
    """How much of a pixel is inside an outline at a signed distance, negative inside."""
    return (0.5 - side * distance).clip(0.0, 1.0)


def painted(mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) of a mask (n, H, W) and colours (n, 3), on black."""
    return mask[..., None] * colour[:, None, None, :]


def hue(angle: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Saturated colours (n, 3) of the HSV cone; the angle goes round in 2 pi."""
    sector = angle[:, None] * 3 / np.pi - np.array([0.0, 2.0, 4.0])
    away = np.abs((sector + 3) % 6 - 3)
    return brightness[:, None] * (2.0 - away).clip(0.0, 1.0)


def disc_or_square(f: Factors) -> np.ndarray:
    x, y = pixel_grid(32)
    u, v, size = x * 32 - column(f["x"]), y * 32 - column(f["y"]), column(f["size"])
    disc, square = np.hypot(u, v) < size, np.maximum(abs(u), abs(v)) < size
    mask = np.where(column(f["shape"]) < 0.5, disc, square)
    return painted(mask, np.stack([f["red"], f["green"], f["blue"]], 1))


def triangle(f: Factors) -> np.ndarray:
    x, y = pixel_grid(32)
    u, v = x - column(f["x"]), y - column(f["y"])
    # Three sides at the same distance from the centre.
    normals = [(math.cos(a), math.sin(a)) for a in np.pi * np.array([1 / 2, 7 / 6, 11 / 6])]
    far = np.max([a * u + b * v for a, b in normals], 0) - column(f["scale"]) / 2
    return painted(soft(far, 32), hue(f["hue"], f["brightness"]))


def bumps(f: Factors) -> np.ndarray:
    at = np.linspace(0.0, 1.0, 200)[None]
    total = np.zeros((len(f["place"]), 200))
    for end in ("", "2"):
        if f"place{end}" in f:
            place, height = (column(f[f"{name}{end}"], 1) for name in ("place", "height"))
            total += height * np.exp(-((at - place) ** 2) / (2 * 0.08**2))
    return total


def flat_map(f: Factors) -> np.ndarray:
    u = np.stack(list(f.values()), 1)
    return u @ np.random.default_rng(20).normal(size=(u.shape[1], 20))


def curved_map(f: Factors) -> np.ndarray:
    u, random = np.stack(list(f.values()), 1), np.random.default_rng(21)
    first, second = random.normal(size=(2, u.shape[1], 20))
    return u @ first + np.sin(1.5 * u @ second)


def leaf(f: Factors) -> np.ndarray:
    from prosail import run_prospect

    usual = {"n": 1.5, "cab": 40.0, "car": 8.0, "cbrown": 0.1, "cw": 0.012, "cm": 0.006}
    count = len(next(iter(f.values())))
    table = {name: f.get(name, np.full(count, value)) for name, value in usual.items()}
    rows = zip(*table.values(), strict=True)
    # Reflectance; every tenth of 2,101 bands, of which neighbours hardly differ.
    return np.stack([run_prospect(*map(float, row))[1][::10] for row in rows])


def random_shape(f: Factors) -> np.ndarray:
    from idsprites import Factors as Drawn
    from idsprites import InfiniteDSprites

    # The package draws its shapes from numpy's global generator.
    state = np.random.get_state()
    np.random.seed(7)
    try:
        canvas = InfiniteDSprites(img_size=32, shapes=1)
    finally:
        np.random.set_state(state)
    rows = zip(f["scale"], f["orientation"], f["x"], f["y"], strict=True)
    white = np.ones(3)
    images = [canvas.draw(Drawn(canvas.shapes[0], white, 0, *row)) for row in rows]
    return np.moveaxis(np.stack(images), 1, -1)


def on_a_grid(f: Factors) -> np.ndarray:
    x, y = pixel_grid(64)
    u, v = 64 * x - column(f["x"]), 64 * y - column(f["y"])
    angle = column(f["angle"]) if "angle" in f else 0.4
    c, s = np.cos(angle), np.sin(angle)
    a = column(f["scale"])
    u, v = (c * u + s * v) / a, (c * v - s * u) / a
    ellipse = u**2 + (v / 0.5) ** 2 < 1.0
    if "shape" not in f and "angle" not in f:
        return ellipse
    heart = (u**2 + v**2 - 0.6) ** 3 + 1.2 * u**2 * v**3 < 0.0
    if "shape" not in f:
        return heart
    square = np.maximum(abs(u), abs(v)) < 0.8
    which = column(f["shape"])
    return np.where(which < 0.5, square, np.where(which < 1.5, ellipse, heart))


# Four more kinds of pictures ---------------------------------------------------------------------


def speckle(f: Factors) -> np.ndarray:
    x, y = pixel_grid(28)
    square = (x - column(f["x"])) ** 2 + (y - column(f["y"])) ** 2
    return 0.03 + 0.94 * np.exp(-square / (2 * column(f["width"]) ** 2))


def ramps(f: Factors) -> np.ndarray:
    x, y = pixel_grid(28)
    logits = column(f["across"]) * (x - 0.5) + column(f["down"]) * (y - 0.5) + column(f["level"])
    return 1.0 / (1.0 + np.exp(-logits))


def crosses(f: Factors) -> np.ndarray:
    x, y = pixel_grid(28)
    u, v = abs(x - column(f["x"])), abs(y - column(f["y"]))
    long, thick = column(f["arm"]), column(f["thickness"])
    one, other = np.maximum(u - long, v - thick), np.maximum(u - thick, v - long)
    return column(f["brightness"]) * soft(np.minimum(one, other), 28)


def horizons(f: Factors) -> np.ndarray:
    x, y = pixel_grid(32)
    ground = soft(column(f["horizon"]) - y, 32)[..., None]
    sun = soft(np.hypot(x - column(f["sun"]), y - 0.25) - column(f["size"]), 32)[..., None]
    sky = painted(np.ones((1, 32, 32)), np.outer(f["sky"], [0.4, 0.6, 1.0]))
    sky = sky * (1.0 - sun) + sun * np.array([1.0, 0.9, 0.3])
    earth = painted(np.ones((1, 32, 32)), np.outer(f["field"], [0.5, 0.9, 0.3]))
    return sky * (1.0 - ground) + earth * ground


def faces(f: Factors) -> np.ndarray:
    x, y = pixel_grid(32)
    u, v = x - 0.5, y - 0.5
    wide = column(f["width"])
    image = column(f["shade"]) * soft((np.hypot(u / wide, v / 0.42) - 1.0) * wide, 32)

    def ink(distance: np.ndarray) -> None:
        nonlocal image
        image = image * (1.0 - soft(distance, 32))

    for side in (-1, 1):
        eye = side * column(f["eyes"]) + column(f["gaze"])
        ink(np.hypot(u - eye, v + 0.1) - 0.05)
        ink(np.maximum(abs(u - side * 0.14) - 0.08, abs(v + column(f["brows"])) - 0.018))
    mouth = 0.2 + column(f["smile"]) * (0.5 - (u / 0.18) ** 2)
    ink(np.maximum(abs(u) - 0.18, abs(v - mouth) - 0.025))
    return image


def frames(f: Factors) -> np.ndarray:
    x, y = pixel_grid(28)
    u, v = abs(x - column(f["x"])), abs(y - column(f["y"]))
    far = np.maximum(u - column(f["width"]), v - column(f["height"]))
    return column(f["brightness"]) * soft(abs(far) - 0.02, 28)


def long_blob(f: Factors) -> np.ndarray:
    x, y = pixel_grid(32)
    u, v = (x - column(f["x"])) / column(f["width"]), (y - column(f["y"])) / column(f["height"])
    return 0.05 + 0.9 * np.exp(-0.5 * (u**2 + v**2))


VECTORS = (bumps, flat_map, curved_map, leaf)

# The sets ----------------------------------------------------------------------------------------


@dataclass
class _Table:
    """Sets by name, made from pictures and what is done to them."""

    sets: dict[str, Set] = field(default_factory=dict)

    def add(self, plain: Set, *endings: str) -> None:
        """Add what endings make of a set; an empty one is the set itself."""
        for ending in endings:
            changes: dict[str, float] = {}
            for word in ending.split("-")[1:]:
                if word.startswith("noise"):
                    changes["noise"] = int(word.removeprefix("noise")) / 100
                elif word.startswith("faint"):
                    changes["contrast"] = int(word.removeprefix("faint")) / 100
                elif word.startswith("K"):
                    changes["latents"] = int(word.removeprefix("K"))
                else:
                    changes["size"] = int(word)
            name = plain.name + ending
            self.sets[name] = replace(plain, name=name, **changes)


def _sets() -> dict[str, Set]:
    table = _Table()

    def sprite(name: str, factors: Sequence[str], *endings: str) -> None:
        spans = {factor: SPRITE_FACTORS[factor] for factor in factors}
        about = "the package's sprites: " + ", ".join(factors)
        table.add(Set(name, len(factors), False, about, None, spans), *endings)

    sprite(
        *("sprites", list(SPRITE_FACTORS), "", "-noise05", "-noise10", "-noise20"),
        *("-faint60", "-faint60-noise05", "-faint30", "-faint30-noise05"),
        *("-500", "-2000", "-5000", "-50000", "-K10", "-K30", "-K100"),
    )
    sprite("sprites_xy", ["x", "y"], "")
    sprite("sprites_four", ["x", "y", "size", "red"], "", "-noise10")

    endings = {
        "squares_four": ["-noise05"],
        "two_blobs": ["", "-noise10"],
        "bars": ["-faint60-noise05"],
        "grey_blob": ["", "-noise05"],
    }
    round_ones = {"ellipses", "shapes"}
    for name, (draw, ranges, truth) in kinds.KINDS.items():
        note = "the angle is a circle, two numbers" if name in round_ones else ""
        varying = {key: span for key, span in ranges.items() if span[1] > span[0]}
        still = {key: low for key, (low, high) in ranges.items() if low == high}
        about = "benchmarks/kinds.py"
        plain = Set(name, truth, False, about, _held(draw, still), varying, note)
        plain = replace(plain, circles=int(name in round_ones))
        table.add(plain, *endings.get(name, [""]))

    colours = {name: (0.0, 1.0) for name in ("red", "green", "blue")}
    place = {"x": (8, 24, 17), "y": (8, 24, 17), "size": (3, 8, 6)}
    table.add(
        Set(
            *("disc_or_square", 7, True),
            "a coloured disc or square at whole pixels (IRMAE: Jing, Zbontar and LeCun, 2020)",
            *(disc_or_square, {**place, **colours, "shape": (0, 1, 2)}),
            "the shape, one of two, counts as one",
        ),
        *("", "-noise10"),
    )
    where = {"x": (0.35, 0.65), "y": (0.35, 0.65), "scale": (0.2, 0.4), "brightness": (0.4, 1.0)}
    about = "a coloured triangle (Least Volume: Chen and Fuge, 2024)"
    table.add(
        Set(
            *("triangle", 6, True, about, triangle, {**where, "hue": (0.0, 2 * np.pi)}),
            "the hue is a circle, two numbers",
            circles=1,
        ),
        *("", "-faint60-noise05"),
    )
    arc = Set("triangle_arc", 5, True, about, triangle, {**where, "hue": (0.0, 2 * np.pi / 3)})
    table.add(replace(arc, note="the hue goes from red to green, not round"), "", "-noise05")

    about = "200 samples of shifted and scaled Gaussians (RRAE: Mounayer et al., 2024)"
    one = {"place": (0.25, 0.75), "height": (0.5, 1.5)}
    two = {"place": (0.15, 0.4), "height": (0.5, 1.5), "place2": (0.6, 0.85), "height2": (0.5, 1.5)}
    table.add(Set("bump", 2, True, about, bumps, one), "", "-noise05")
    table.add(Set("bumps", 4, True, about, bumps, two), "", "-noise05", "-noise10")

    for kind, draw, counts in (
        ("flat", flat_map, {3: ("", "-noise05"), 10: ("-noise10",)}),
        ("curved", curved_map, {2: ("",), 5: ("-noise05",), 8: ("", "-noise05")}),
    ):
        how = "a linear map" if kind == "flat" else "a linear map and sines"
        about = f"20-dimensional vectors by {how} (after Zheng, He, Qiu and Wipf, 2022)"
        for count, endings in counts.items():
            spans = {f"u{i}": (-1.0, 1.0) for i in range(count)}
            table.add(Set(f"{kind}_{count}", count, True, about, draw, spans), *endings)

    about = "reflectance of a leaf in 211 bands, PROSPECT-D (prosail)"
    six = {"n": (1.0, 2.5), "cab": (10.0, 80.0), "car": (2.0, 20.0), "cbrown": (0.0, 0.8)}
    six |= {"cw": (0.005, 0.03), "cm": (0.003, 0.015)}
    three = {name: six[name] for name in ("n", "cab", "cw")}
    table.add(Set("leaf_three", 3, True, about, leaf, three, needs="prosail"), "")
    table.add(Set("leaf", 6, True, about, leaf, six, needs="prosail"), "", "-noise01")

    table.add(
        Set(
            *("random_shape", 5, True, "one shape of infinite dSprites (idsprites)", random_shape),
            {
                "scale": (0.5, 1.0),
                "orientation": (0.0, 2 * np.pi),
                "x": (0.2, 0.8),
                "y": (0.2, 0.8),
            },
            note="the angle is a circle, two numbers",
            needs="idsprites",
            circles=1,
        ),
        "",
    )
    about = "black and white, factors on a grid (after dSprites: Matthey et al., 2017)"
    grid: dict[str, Span] = {"scale": (7.0, 14.0, 6), "x": (18, 46, 32), "y": (18, 46, 32)}
    turn: dict[str, Span] = {"angle": (0.0, 2 * np.pi * 39 / 40, 40)}
    note = "the angle is a circle, two numbers"
    three_shapes: dict[str, Span] = {**grid, **turn, "shape": (0, 2, 3)}
    table.add(
        Set(
            "grid", 6, True, about, on_a_grid, three_shapes, f"{note}; the shape is one", circles=1
        ),
        "",
    )
    table.add(Set("grid_hearts", 5, True, about, on_a_grid, {**grid, **turn}, note, circles=1), "")
    table.add(Set("grid_ellipses", 3, True, about, on_a_grid, grid), "")

    about = "black and white drawn from the probabilities of a blob"
    spans = {"x": (0.3, 0.7), "y": (0.3, 0.7), "width": (0.1, 0.25)}
    table.add(Set("speckle", 3, True, about, speckle, spans, bernoulli=True), "")
    about = "black and white drawn from the probabilities of a slope"
    spans = {"across": (-6.0, 6.0), "down": (-6.0, 6.0), "level": (-2.0, 2.0)}
    table.add(Set("ramps", 3, True, about, ramps, spans, bernoulli=True), "")

    spans = {"x": (0.35, 0.65), "y": (0.35, 0.65), "arm": (0.15, 0.3), "thickness": (0.03, 0.1)}
    spans |= {"brightness": (0.4, 1.0)}
    table.add(
        Set("crosses", 5, True, "a grey cross", crosses, spans),
        *("", "-noise05", "-noise10", "-faint60-noise10", "-2000", "-K30"),
    )
    spans = {"horizon": (0.5, 0.8), "sky": (0.3, 1.0), "field": (0.2, 1.0), "sun": (0.2, 0.8)}
    spans |= {"size": (0.06, 0.16)}
    table.add(
        Set("horizons", 5, True, "sky, sun and a field, in colour", horizons, spans),
        *("", "-noise10", "-faint30", "-faint30-noise05", "-faint60-noise10", "-2000"),
    )
    spans = {"width": (0.3, 0.45), "eyes": (0.1, 0.18), "gaze": (-0.04, 0.04)}
    spans |= {"brows": (0.18, 0.26), "smile": (-0.12, 0.12), "shade": (0.5, 1.0)}
    table.add(
        Set("faces", 6, False, "a schematic face, grey", faces, spans),
        *("", "-noise05", "-faint60-noise10"),
    )
    spans = {"x": (0.35, 0.65), "y": (0.35, 0.65), "width": (0.12, 0.3), "height": (0.12, 0.3)}
    spans |= {"brightness": (0.4, 1.0)}
    table.add(
        Set("frames", 5, False, "a rectangle of thin lines, grey", frames, spans), "", "-noise05"
    )
    about = "black and white drawn from the probabilities of a long blob"
    spans = {"x": (0.3, 0.7), "y": (0.3, 0.7), "width": (0.08, 0.25), "height": (0.08, 0.25)}
    table.add(Set("long_blob", 4, False, about, long_blob, spans, bernoulli=True), "")
    return table.sets


def _held(draw: Callable[[Factors], np.ndarray], still: Mapping[str, float]) -> Callable:
    """A renderer of benchmarks/kinds.py of the factors that vary."""

    def drawn(factors: Factors) -> np.ndarray:
        count = len(next(iter(factors.values())))
        return draw({**factors, **{name: np.full(count, value) for name, value in still.items()}})

    return drawn


SETS = _sets()


def find(name: str) -> Set:
    """A set by its name.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in SETS:
        raise UserError(f"unknown set '{name}'{nearest(name, SETS)}; --table lists them")
    return SETS[name]


def markdown() -> str:
    """All sets as a Markdown table."""
    lines = [
        "| set | numbers | kept | images | latents | what it is |",
        "|---|---:|---|---:|---:|---|",
    ]
    for one in SETS.values():
        what = one.about + (f"; {one.note}" if one.note else "")
        kept = "kept" if one.kept else ""
        lines.append(
            f"| {one.name} | {one.truth} | {kept} | {one.size:,} | {one.latents} | {what} |"
        )
    kept = sum(one.kept for one in SETS.values())
    lines.append(f"\n{len(SETS)} sets, {kept} of them kept.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--out", type=Path, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--size", type=int, help="images in the file; default: those of the set and a ninth more"
    )
    parser.add_argument("--table", action="store_true", help="print a table of all sets")
    words = parser.parse_args()
    if words.table:
        print(markdown())
        return
    if words.name is None or words.out is None:
        parser.error("expected the name of a set and --out, or --table")
    if words.size is not None and words.size < 1:
        parser.error(f"--size: expected at least 1, got {words.size}")
    try:
        find(words.name).save(words.out, words.size, words.seed)
    except UserError as error:
        parser.error(one_line(error))


if __name__ == "__main__":
    main()
