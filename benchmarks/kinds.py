"""Images of twelve further kinds, of which the number of factors is known.

    python benchmarks/kinds.py rings --size 22000 --seed 95 --out rings.npz

They are rendered by other code than the package's sprites: hard and soft edges, grey, coloured and
black and white, one thing or two. ``render(kind, n, seed)`` gives images and factors, and ``KINDS``
says how many numbers it takes to describe an image of each kind.
"""

import argparse

import numpy as np

# Samples of each pixel along each axis, for edges that are neither sharp nor jagged.
SAMPLES = 3


def grid(side):
    """Coordinates in (0, 1) of the samples of an image, x and y of shape (1, S, S)."""
    at = (np.arange(side * SAMPLES) + 0.5) / (side * SAMPLES)
    y, x = np.meshgrid(at, at, indexing="ij")
    return x[None].astype(np.float32), y[None].astype(np.float32)


def pixels(samples):
    """Means over the samples of each pixel: (n, S, S) to (n, side, side)."""
    n, size, _ = samples.shape
    side = size // SAMPLES
    return samples.reshape(n, side, SAMPLES, side, SAMPLES).mean((2, 4))


def column(values):
    return values.astype(np.float32)[:, None, None]


def coloured(mask, colour, background):
    """(n, side, side, 3) of a mask, a colour (n, 3) and a grey background (n,)."""
    mask, back = mask[..., None], column(background)[..., None]
    return mask * colour[:, None, None, :].astype(np.float32) + (1.0 - mask) * back


def squares(f):
    x, y = grid(32)
    half = column(f["size"])
    inside = (abs(x - column(f["x"])) < half) & (abs(y - column(f["y"])) < half)
    colour = np.stack([f["red"], f["green"], f["blue"]], 1)
    return coloured(pixels(inside.astype(np.float32)), colour, f["background"])


def soft_squares(f):
    x, y = grid(32)
    far = np.maximum(abs(x - column(f["x"])), abs(y - column(f["y"])))
    mask = 1.0 / (1.0 + np.exp((far - column(f["size"])) / 0.02))
    colour = np.stack([f["red"], f["green"], f["blue"]], 1)
    return coloured(pixels(mask), colour, np.zeros(len(colour)))


def ellipses(f):
    x, y = grid(32)
    u, v = x - column(f["x"]), y - column(f["y"])
    c, s = np.cos(column(f["angle"])), np.sin(column(f["angle"]))
    a = column(f["size"])
    inside = ((c * u + s * v) / a) ** 2 + ((c * v - s * u) / (0.55 * a)) ** 2 < 1.0
    return column(f["brightness"]) * pixels(inside.astype(np.float32))


def blob(x, y, at_x, at_y, width):
    return np.exp(-((x - column(at_x)) ** 2 + (y - column(at_y)) ** 2) / (2.0 * column(width) ** 2))


def two_blobs(f):
    x, y = grid(32)
    width = np.full(len(f["x1"]), 0.09)
    first = 0.45 * blob(x, y, f["x1"], f["y1"], width)
    second = column(f["brightness"]) * blob(x, y, f["x2"], f["y2"], width)
    return pixels(first + second)


def diamonds(f):
    x, y = grid(32)
    far = abs(x - column(f["x"])) + abs(y - column(f["y"]))
    return pixels((far < column(f["size"])).astype(np.float32)) > 0.5


def bars(f):
    x, y = grid(32)
    shape = (len(f["row"]), *x.shape[1:])
    across = pixels(np.broadcast_to(abs(y - column(f["row"])) < 0.08, shape))
    down = pixels(np.broadcast_to(abs(x - column(f["column"])) < 0.08, shape))
    image = np.repeat(0.2 * (column(f["gradient"]) * pixels(x))[..., None], 3, -1)
    image[..., 0] += 0.7 * across * column(f["red"])
    image[..., 2] += 0.7 * down * column(f["blue"])
    return image.clip(0.0, 1.0)


def grey_blob(f):
    x, y = grid(28)
    return column(f["brightness"]) * pixels(blob(x, y, f["x"], f["y"], f["width"]))


def rectangles(f):
    x, y = grid(64)
    half = column(f["size"])
    root = np.sqrt(column(f["aspect"]))
    inside = (abs(x - column(f["x"])) < half * root) & (abs(y - column(f["y"])) < half / root)
    return pixels(inside.astype(np.float32)) > 0.5


def rings(f):
    x, y = grid(64)
    radius = np.hypot(x - column(f["x"]), y - column(f["y"]))
    inside = abs(radius - column(f["radius"])) < column(f["width"])
    return pixels(inside.astype(np.float32)) > 0.5


def shapes(f):
    x, y = grid(64)
    u, v = x - column(f["x"]), y - column(f["y"])
    c, s = np.cos(column(f["angle"])), np.sin(column(f["angle"]))
    u, v, a = c * u + s * v, c * v - s * u, column(f["size"])
    square = np.maximum(abs(u), abs(v)) < a
    ellipse = (u / (1.2 * a)) ** 2 + (v / (0.7 * a)) ** 2 < 1.0
    triangle = (v > -0.8 * a) & (v < 1.4 * a - 1.8 * abs(u))
    which = column(f["shape"])
    return pixels(np.where(which < 1, square, np.where(which < 2, ellipse, triangle)) * 1.0) > 0.5


PLACE = {"x": (0.3, 0.7), "y": (0.3, 0.7)}
COLOUR = {"red": (0.2, 1.0), "green": (0.2, 1.0), "blue": (0.2, 1.0)}
TURN = (0.0, np.pi)
# Renderer, ranges of the factors (equal ends: fixed), numbers that describe an image.
KINDS = {
    "squares": (
        squares,
        {**PLACE, "size": (0.1, 0.22), **COLOUR, "background": (0.0, 0.5)},
        7,
    ),
    "squares_four": (
        squares,
        {
            "x": (0.3, 0.7),
            "y": (0.5, 0.5),
            "size": (0.1, 0.22),
            "red": (0.2, 1.0),
            "green": (0.5, 0.5),
            "blue": (0.5, 0.5),
            "background": (0.0, 0.5),
        },
        4,
    ),
    "soft_squares": (soft_squares, {**PLACE, "size": (0.1, 0.22), **COLOUR}, 6),
    "ellipses_three": (
        ellipses,
        {**PLACE, "size": (0.18, 0.18), "brightness": (0.4, 1.0), "angle": (0.6, 0.6)},
        3,
    ),
    # The angle is a circle, which takes two numbers.
    "ellipses": (
        ellipses,
        {**PLACE, "size": (0.12, 0.24), "brightness": (0.4, 1.0), "angle": TURN},
        6,
    ),
    "two_blobs": (
        two_blobs,
        {
            "x1": (0.2, 0.4),
            "y1": (0.25, 0.75),
            "x2": (0.6, 0.8),
            "y2": (0.25, 0.75),
            "brightness": (0.2, 0.7),
        },
        5,
    ),
    "diamonds": (diamonds, {**PLACE, "size": (0.12, 0.25)}, 3),
    "bars": (
        bars,
        {
            "row": (0.2, 0.8),
            "column": (0.2, 0.8),
            "red": (0.3, 1.0),
            "blue": (0.3, 1.0),
            "gradient": (0.0, 1.0),
        },
        5,
    ),
    "grey_blob": (grey_blob, {**PLACE, "width": (0.08, 0.16), "brightness": (0.4, 1.0)}, 4),
    "rectangles": (rectangles, {**PLACE, "size": (0.1, 0.2), "aspect": (0.6, 1.7)}, 4),
    "rings": (rings, {**PLACE, "radius": (0.12, 0.25), "width": (0.03, 0.07)}, 4),
    # Shape, size, x, y, and the angle, which takes two.
    "shapes": (
        shapes,
        {**PLACE, "size": (0.1, 0.2), "angle": (0.0, 2.0 * np.pi), "shape": (0, 3)},
        6,
    ),
    # Small and faint enough that a latent is hardly worth its price.
    "three_grey": (
        grey_blob,
        {**PLACE, "width": (0.1, 0.1), "brightness": (0.4, 1.0)},
        3,
    ),
}


def render(kind, n, seed):
    """Images of a kind as bytes, (n, H, W) or (n, H, W, 3), and the factors (n, F) that vary."""
    draw, ranges, _ = KINDS[kind]
    random = np.random.default_rng(seed)
    factors = {name: random.uniform(low, high, n) for name, (low, high) in ranges.items()}
    parts = [
        draw({name: values[at : at + 256] for name, values in factors.items()})
        for at in range(0, n, 256)
    ]
    images = np.concatenate(parts)
    varying = {name: factors[name] for name, (low, high) in ranges.items() if high > low}
    return np.round(255.0 * images).astype(np.uint8), varying


def save(path, kind, n, seed, noise=0.0, contrast=1.0):
    """Write an ``.npz`` of a kind, laid out as dSprites; with pixel noise where it is asked for."""
    images, factors = render(kind, n, seed)
    if noise or contrast < 1.0:
        random = np.random.default_rng([seed, 1])
        values = 0.5 * (1.0 - contrast) + contrast * images.astype(np.float32) / 255.0
        values += noise * random.standard_normal(values.shape, np.float32)
        images = np.round(255.0 * values.clip(0.0, 1.0)).astype(np.uint8)
    np.savez(
        path,
        imgs=images,
        latents_values=np.stack(list(factors.values()), 1),
        latents_names=np.array(list(factors)),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--size", type=int, default=22_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0, help="of a pixel in [0, 1]")
    parser.add_argument("--contrast", type=float, default=1.0, help="about a grey of one half")
    parser.add_argument("--out", required=True)
    chosen = parser.parse_args()
    save(chosen.out, chosen.kind, chosen.size, chosen.seed, chosen.noise, chosen.contrast)


if __name__ == "__main__":
    main()
