"""Sprites: images rendered from independent, known factors of variation."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

import torch
from torch import Tensor

from ngvae_pyro import machine
from ngvae_pyro.contexts import float32
from ngvae_pyro.data.images import ImageData, generator
from ngvae_pyro.errors import UserError, described, expect, nearest

# The range of each factor. Lengths are relative to the image's side, colours and brightness to
# white. A shape never leaves the image: the largest radius equals the smallest distance from a
# centre to the border.
SPRITE_FACTORS: dict[str, tuple[float, float]] = {
    "x": (0.3, 0.7),
    "y": (0.3, 0.7),
    "size": (0.15, 0.3),
    "red": (0.4, 1.0),
    "green": (0.4, 1.0),
    "blue": (0.4, 1.0),
    "background": (0.0, 0.4),
}
OPTIONAL_SPRITE_FACTORS = ("hue", "rotation", "shape")
# Name: (sides, angle of one corner at rotation 0; the y axis points down, so -pi/2 is up).
_POLYGONS = {"square": (4, -math.pi / 4), "triangle": (3, -math.pi / 2)}
SHAPES = ("disc", *_POLYGONS)


@float32()
def sprites(
    n: int = 22_000,
    seed: int = 0,
    *,
    resolution: int = 32,
    vary: Iterable[str] | None = None,
    hold: Mapping[str, float | str] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    edge: float = 3.0,
    device: torch.device | str = "cpu",
) -> ImageData:
    """One coloured shape on a grey background, rendered from independent uniform factors.

    With d the signed distance to the shape's outline (negative inside), in pixels of a
    32-pixel image,

        coverage = clamp(1/2 - d / edge, 0, 1)
        image    = background (1 - coverage) + colour coverage,

    rounded to uint8. The factors are x, y, size (the radius; that of the circumscribed
    circle for a polygon), red, green, blue (of the shape) and background, with the ranges of
    :data:`SPRITE_FACTORS`. Three more are off until ``vary`` names them:

    - hue, in [0, 2 pi) radians: turns the colour around the grey axis (clamped to [0, 1]).
      Grey has no hue, so when hue varies, the colour is held at (1.0, 0.4, 0.4) by default.
    - rotation, in radians, over one period of the shape: [0, pi/2) for a square,
      [0, 2 pi/3) for a triangle, [0, 2 pi) if the shape varies. It does not show on a
      disc, so when rotation varies, the shape is a square by default.
    - shape: 0 disc, 1 square, 2 triangle.

    Hue and rotation are circular: both ends of the range are the same image.

    Args:
        n: Number of images.
        seed: The same n and seed draw the same factors, whatever varies.
        resolution: 32, 64 or 128 pixels a side. The edge widens with it, so that a larger
            image shows the same.
        vary: The factors that vary. Default: those of the seven that ``hold`` does not name.
        hold: Values, in a factor's own units, for factors that do not vary; ``shape`` also by
            name. Default: the middle of the range; 0 for the optional factors.
        ranges: (low, high), in the factor's own units, for factors that vary in a range other
            than that of :data:`SPRITE_FACTORS`, such as ``{"background": (0.4, 0.8)}``. A shape
            must stay inside the image: with sizes up to 0.4, x and y must lie in [0.4, 0.6].
        edge: Width of the soft edge in pixels of a 32-pixel image, like a camera's point
            spread; the sharpest is one pixel, so 1 at 32 and 0.5 at 64.
        device: Where to render. The factors are drawn on the CPU and the result is returned there;
            bytes rendered on another device may differ by one from those rendered on the CPU.

    Returns:
        Images whose factors are the seven above, in this order and including constant ones, then
        each optional one that ``vary`` or ``hold`` names.

    Raises:
        UserError: For unknown factors, values out of range, ranges in which a shape would leave the
            image, a factor that varies while another is held at a value that hides it, and
            more images than fit into memory.

    >>> sprites(100, vary=("x", "y"))
    ImageData('sprites:x,y', 100 images of 3x32x32, x, y, size, red, green, blue, background)
    """
    expect("sprites: n", n, Integral, "a whole number of images")
    expect("sprites: resolution", resolution, Integral, "32, 64 or 128")
    expect("sprites: edge", edge, Real, "a number of pixels")
    expect("sprites: device", device, (str, torch.device), "a device, such as 'cpu' or 'cuda'")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise UserError(
            f"sprites: device: expected a device, such as 'cpu' or 'cuda', got {device!r}"
        ) from None
    for name, table in (("hold", hold), ("ranges", ranges)):
        if table is not None:
            expect(f"sprites: {name}", table, Mapping, "a table from factors to values")
    hold = hold or {}
    vary = _checked_names([k for k in SPRITE_FACTORS if k not in hold] if vary is None else vary)
    held = _checked_hold(hold, vary)
    own = _checked_ranges(ranges or {}, vary, held)
    if n < 1:
        raise UserError(f"sprites: n: expected at least 1 image, got {n}")
    if resolution not in (32, 64, 128):
        raise UserError(f"sprites: resolution: expected 32, 64 or 128, got {resolution}")
    if not 32 / resolution <= edge <= 32:
        raise UserError(f"sprites: edge: expected {32 / resolution:g} to 32 pixels, got {edge}")

    size = n * (3 * resolution**2 + machine.FLOAT_BYTES * len(SPRITE_FACTORS))
    machine.check(f"sprites: {n} images of 3x{resolution}x{resolution}", machine.DATA_PEAK * size)
    factors = _draw_factors(n, seed, vary, held, SPRITE_FACTORS | own)
    images = torch.empty(n, 3, resolution, resolution, dtype=torch.uint8)
    # Small enough to stay in the processor's cache or in any accelerator's memory.
    chunk = 2000 * 32**2 // resolution**2
    for start in range(0, n, chunk):
        part = {name: f[start : start + chunk].to(device) for name, f in factors.items()}
        images[start : start + chunk] = _render(part, resolution, edge)

    named = {*vary, *hold}
    names = [name for name in factors if name in SPRITE_FACTORS or name in named]
    spans = {name: f"{name}={low:g}..{high:g}" for name, (low, high) in own.items()}
    # The name from which `load` would render the same images.
    listed = spans.values() if vary == tuple(SPRITE_FACTORS) else [spans.get(k, k) for k in vary]
    label = "sprites:" + ",".join(listed) if listed else "sprites"
    return ImageData.stored(label, images, torch.stack([factors[k] for k in names], 1), names)


def _checked_names(vary: Iterable[str]) -> tuple[str, ...]:
    known = (*SPRITE_FACTORS, *OPTIONAL_SPRITE_FACTORS)
    if isinstance(vary, str) or not isinstance(vary, Iterable):
        raise UserError(f"sprites: vary: expected names of factors, got {described(vary)}")
    vary = tuple(vary)
    for name in vary:
        if name not in known:
            raise UserError(
                f"sprites: unknown factor {name!r}; expected some of {', '.join(known)}"
                + nearest(str(name), known)
            )
    if not vary or len(set(vary)) < len(vary):
        raise UserError(
            f"sprites: expected at least one factor to vary and none named twice, "
            f"got {', '.join(vary) or 'none'}"
        )
    return tuple(name for name in known if name in vary)


def _checked_hold(hold: Mapping[str, float | str], vary: tuple[str, ...]) -> dict[str, float]:
    """The values of the factors that are held away from the middle of their range."""
    held: dict[str, float] = {}
    for name, value in hold.items():
        _checked_names([name])
        if name in vary:
            raise UserError(f"sprites: {name} cannot both vary and be held at {value}")
        if name == "shape":
            if value in SHAPES:
                value = SHAPES.index(value)
            if value not in range(len(SHAPES)):
                raise UserError(
                    f"sprites: shape: expected one of {', '.join(SHAPES)} or 0..2, got {value!r}"
                )
        elif not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f"sprites: {name}: expected a finite number, got {value!r}")
        elif name in SPRITE_FACTORS and not 0 <= value <= 1:
            raise UserError(f"sprites: {name}: expected a value in [0, 1], got {value:g}")
        held[name] = float(value)

    held = dict.fromkeys(OPTIONAL_SPRITE_FACTORS, 0.0) | held
    if "rotation" in vary and "shape" not in vary:
        if "shape" not in hold:
            held["shape"] = float(SHAPES.index("square"))
        elif held["shape"] == SHAPES.index("disc"):
            raise UserError(
                "sprites: rotation varies but does not show on the held shape 'disc'; "
                "expected shape to be square or triangle, or to vary"
            )
    if "hue" in vary:
        held = {"red": 1.0, "green": 0.4, "blue": 0.4} | held
        rgb = ("red", "green", "blue")
        if not set(rgb) & set(vary) and len({held[name] for name in rgb}) == 1:
            raise UserError(
                "sprites: hue varies but does not show on the held grey "
                f"(red = green = blue = {held['red']:g}); expected them to differ or to vary"
            )
    return held


def _checked_ranges(
    ranges: Mapping[str, tuple[float, float]], vary: tuple[str, ...], held: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """The ranges that differ from the usual ones, in the order of ``SPRITE_FACTORS``."""
    for name, span in ranges.items():
        _checked_names([name])
        if not isinstance(span, (tuple, list)) or len(span) != 2:
            raise UserError(f"sprites: {name}: expected a range (low, high), got {described(span)}")
        low, high = span
        expect(f"sprites: {name}", low, Real, "a range (low, high) of numbers")
        expect(f"sprites: {name}", high, Real, "a range (low, high) of numbers")
        if name not in SPRITE_FACTORS or name not in vary:
            problem = "does not vary" if name in SPRITE_FACTORS else "has none"
            raise UserError(f"sprites: {name}: got the range {low:g}..{high:g}, but it {problem}")
        if not 0 <= low < high <= 1:
            raise UserError(
                f"sprites: {name}: expected a range low..high in [0, 1], got {low:g}..{high:g}"
            )
    spans = dict(SPRITE_FACTORS) | dict(ranges)
    for name in spans:
        if name not in vary:
            value = held.get(name, sum(spans[name]) / 2)
            spans[name] = value, value
    radius = spans["size"][1]
    for name in ("x", "y"):
        low, high = spans[name]
        # Held values may place a shape partly outside; only ranges are checked.
        if {name, "size"} & set(ranges) and min(low, 1 - high) < radius - 1e-6:
            fits = f"{name} in {radius:g}..{1 - radius:g} or " if radius < 0.5 else ""
            raise UserError(
                f"sprites: a shape of size {radius:g} at {name} {low:g}..{high:g} leaves the "
                f"image; expected {fits}size up to {min(low, 1 - high):g}"
            )
    return {name: ranges[name] for name in SPRITE_FACTORS if name in ranges}


def _draw_factors(
    n: int,
    seed: int,
    vary: tuple[str, ...],
    held: dict[str, float],
    spans: Mapping[str, tuple[float, float]],
) -> dict[str, Tensor]:
    """The values (n,) of each factor, in its own units."""
    source = generator(seed)
    # All columns are drawn whatever varies, so that holding one factor does not change the others.
    uniform = dict(zip(SPRITE_FACTORS, torch.rand(n, 7, generator=source).T, strict=True))
    optional = torch.rand(n, 3, generator=source).T
    uniform |= dict(zip(OPTIONAL_SPRITE_FACTORS, optional, strict=True))

    period = 2 * math.pi
    if "shape" not in vary and held["shape"] != 0:
        period /= _POLYGONS[SHAPES[int(held["shape"])]][0]
    ranges = {
        **spans,
        "hue": (0.0, 2 * math.pi),
        "rotation": (0.0, period),
        "shape": (0.0, float(len(SHAPES))),
    }
    factors = {}
    for name, (low, high) in ranges.items():
        if name in vary:
            factors[name] = low + (high - low) * uniform[name]
        elif name in held:
            factors[name] = torch.full((n,), held[name])
        else:
            factors[name] = low + (high - low) * torch.full((n,), 0.5)
    factors["shape"] = factors["shape"].floor()
    return factors


def _render(factors: Mapping[str, Tensor], resolution: int, edge: float) -> Tensor:
    """(B, 3, resolution, resolution) uint8 for factors of shape (B,)."""
    f = {name: values.view(-1, 1, 1) for name, values in factors.items()}
    centre = (torch.arange(resolution, device=f["x"].device) + 0.5) / resolution
    dx = centre.view(1, 1, -1) - f["x"]
    dy = centre.view(1, -1, 1) - f["y"]
    distance = _distance(dx, dy, f["size"], f["shape"], f["rotation"])
    coverage = (0.5 - distance * 32 / edge).clamp(0, 1).unsqueeze(1)
    colour = torch.stack([f["red"], f["green"], f["blue"]], dim=1)
    if f["hue"].any():
        colour = _turn_hue(colour, f["hue"].unsqueeze(1))
    image = f["background"].unsqueeze(1) * (1 - coverage) + colour * coverage
    return (image * 255).round().to(torch.uint8)


def _distance(dx: Tensor, dy: Tensor, size: Tensor, shape: Tensor, rotation: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside, in units of the image's side."""
    radius = (dx**2 + dy**2).sqrt()
    distance = radius - size
    for name, (sides, corner) in _POLYGONS.items():
        here = shape == SHAPES.index(name)
        if not here.any():
            continue
        # Fold the plane into the sector of one side: u points away from the side, v along it.
        sector = 2 * math.pi / sides
        angle = torch.remainder(torch.atan2(dy, dx) - corner - rotation, sector) - sector / 2
        u = radius * angle.cos() - size * math.cos(sector / 2)
        v = (radius * angle.sin()).abs() - size * math.sin(sector / 2)
        polygon = torch.where(u > 0, torch.hypot(u, v.clamp(min=0)), u)
        distance = torch.where(here, polygon, distance)
    return distance


def _turn_hue(colour: Tensor, angle: Tensor) -> Tensor:
    """Turn colours (B, 3, 1, 1) around the grey axis (1, 1, 1) by ``angle`` (Rodrigues)."""
    grey = colour.mean(1, keepdim=True)
    chroma = colour - grey
    # The cross product of the unit grey axis with the chroma.
    across = (chroma.roll(1, 1) - chroma.roll(-1, 1)) / math.sqrt(3)
    return (grey + chroma * angle.cos() + across * angle.sin()).clamp(0, 1)
