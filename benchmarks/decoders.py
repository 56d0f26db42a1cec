"""How well decoders draw from the true factors, which no encoder has to find.

    python benchmarks/decoders.py
    python benchmarks/decoders.py --sets frames ellipses --steps 2500

Each decoder is trained on the factors of a set of :mod:`sets`, standardised, with the sine and the
cosine of angles, by Adam from 1e-3 down to 0 along a cosine, batches of 128. A row of the Markdown
table is a set, and a column the mean squared error of a decoder per pixel, on a tenth of the images
that it was not trained on, and the tenth percentile of the time of its steps. ``OMP_NUM_THREADS``
limits PyTorch's threads.
"""

import argparse
import math
import time

import numpy as np
import sets
import torch

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.sources import as_images
from ngvae_pyro.nn import Decoder
from ngvae_pyro.specs import MLPSpec, ResidualConvSpec, SeparableSpec

DECODERS = {
    "separable": SeparableSpec(),
    "separable, 0 channels": SeparableSpec(channels=0),
    "mlp": MLPSpec(depth=8),
    "residual_conv, 16 channels, 1 block": ResidualConvSpec(channels=16, blocks=1, depth=8),
    "residual_conv": ResidualConvSpec(depth=8),
}
SETS = ["sprites", "ellipses", "frames", "faces"]
# Factors that go round.
ROUND = ("angle", "orientation", "hue")
BATCH, LEARNING_RATE, WARM_UP = 128, 1e-3, 100


def numbers(factors: dict[str, np.ndarray]) -> torch.Tensor:
    """The factors as standardised columns, of an angle both coordinates."""
    columns: list[np.ndarray] = []
    for name, values in factors.items():
        columns += [np.cos(values), np.sin(values)] if name in ROUND else [values]
    found = np.stack(columns, 1)
    return torch.tensor((found - found.mean(0)) / found.std(0), dtype=torch.float32)


def trained(spec, images: torch.Tensor, factors: torch.Tensor, steps: int) -> tuple[float, float]:
    """Error of a decoder on the last tenth of the images, and seconds of a step."""
    torch.manual_seed(0)
    decoder = Decoder(spec, images.shape[1:], factors.shape[1])
    decoder = decoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(decoder.parameters(), LEARNING_RATE, fused=True)
    count, seconds = len(images) * 9 // 10, []
    for step in range(steps):
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * cosine
        began = time.perf_counter()
        rows = torch.randint(count, (BATCH,))
        loss = (decoder(factors[rows]) - images[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        parts = [slice(i, i + BATCH) for i in range(count, len(images), BATCH)]
        wrong = [(decoder(factors[part]) - images[part]).square().mean((1, 2, 3)) for part in parts]
    return torch.cat(wrong).mean().item(), sorted(seconds)[len(seconds) // 10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=SETS, help=f"default: {' '.join(SETS)}")
    parser.add_argument("--steps", type=int, default=1200, help="default: 1200")
    parser.add_argument("--images", type=int, default=11_111, help="default: 11111")
    arguments = parser.parse_args()
    print("| set | " + " | ".join(f"`{name}`" for name in DECODERS) + " |")
    print("|---|" + "---:|" * len(DECODERS))
    for name in arguments.sets:
        drawn, factors = sets.find(name).render(arguments.images)
        images = ImageData.to_unit(as_images(drawn, name).images)
        cells = []
        for spec in DECODERS.values():
            error, seconds = trained(spec, images, numbers(factors), arguments.steps)
            cells.append(f"{error:.1e}, {1e3 * seconds:.0f} ms")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
