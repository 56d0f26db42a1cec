"""Whether what is asked for fits into memory, looked at before any of it is taken.

An allocation that fails is no answer: Linux grants more than there is, and ends the process when it
is used.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ngvae_pyro.errors import UserError
from ngvae_pyro.nn import Decoder, Encoder, PatchDiscriminator
from ngvae_pyro.specs import BetaTCSpec, ConvSpec, FactorSpec, MLPSpec, ResNetV2Spec, RunSpec

FLOAT_BYTES = 4
# Of the size of data as stored: what loading, splitting and a training take at most. They go
# through the images a few at a time, so the half is room for those, factors and indices.
DATA_PEAK = 1.5
# Of each latent: 1,000 for each of 50 images, of z and the precision, and once more to write them.
DRAWS = 50 * 1_000 * 2 * 2
# A weight, its gradient, and Adam's two moments.
COPIES_IN_TRAINING = 4


def there(device: torch.device | str = "cpu") -> float:
    """Bytes of memory that the machine, its container or its GPU has; infinite if none says."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = math.inf
    if hasattr(os, "sysconf"):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, allowed())


def allowed(root: Path = Path("/")) -> float:
    """Bytes that Linux's control groups, of which containers are made, allow; infinite if none.

    The limit is the smallest of the process's group and those above it: ``memory.max`` of version 2
    (https://docs.kernel.org/admin-guide/cgroup-v2.html), ``memory.limit_in_bytes`` of version 1.

    Args:
        root: Where /proc and /sys are.
    """
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return math.inf
    limits = [math.inf]
    for line in groups.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside of a container the path may be that of the machine, and the container's own group
        # is the top; so what is not there is passed over.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            limit = top.joinpath(*parts[:depth], name)
            if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
                limits.append(int(text))
    return min(limits)


def check(what: str, needed: float, device: torch.device | str = "cpu") -> None:
    """Refuses what cannot fit.

    Args:
        what: What needs the memory, for the message.
        needed: Bytes.
        device: Whose memory.

    Raises:
        UserError: With what is needed and what is there.
    """
    if needed > (room := there(device)):
        raise UserError(
            f"{what}: expected something that fits into the {room / 2**30:,.1f} GiB of memory "
            f"here, got what needs {needed / 2**30:,.1f} GiB"
        )


def check_pair(
    spec: RunSpec, image_shape: Sequence[int], images: int = 0, device: torch.device | str = "cpu"
) -> None:
    """Refuses a model and a guide that cannot be held, or not be trained.

    Args:
        spec: What is run.
        image_shape: (C, H, W).
        images: How many are trained on; none where the pair is only read.
        device: Where it is trained.

    Raises:
        UserError: If they do not fit into memory, or the networks do not take such images.
    """
    model, guide, fit = spec.model, spec.guide, spec.fit
    latents = model.latent_size
    # Gaussians of a mixture are what most numbers for a latent are asked for.
    outputs = 2 + 3 * getattr(guide, "components", 0)
    with torch.device("meta"):
        networks: list[nn.Module] = [
            Encoder(guide.encoder, image_shape, latents, outputs),
            Decoder(model.decoder, image_shape, latents),
        ]
        if images and fit.adversarial is not None:
            adversary = fit.adversarial
            networks.append(PatchDiscriminator(image_shape, adversary.channels, adversary.layers))
    weights = sum(p.numel() for network in networks for p in network.parameters())
    if not images:
        # Once as they are, and once in the file.
        check("the networks", 2 * FLOAT_BYTES * weights)
        return
    objective = getattr(guide, "objective", None)
    if isinstance(objective, FactorSpec):
        weights += objective.width * (latents + objective.depth * objective.width)
    encoding, decoding = (activations(n, image_shape) for n in (guide.encoder, model.decoder))
    rows = min(fit.batch_size, images)
    draws = fit.particles * getattr(guide, "draws", 1)
    kept = rows * (fit.particles * (encoding + outputs * latents) + draws * decoding)
    if isinstance(objective, BetaTCSpec):
        # The density of each draw under the posterior of each image.
        kept += 2 * rows**2 * latents
    needed = FLOAT_BYTES * max(COPIES_IN_TRAINING * weights + kept, DRAWS * latents)
    check("training (latent_size, networks, fit.batch_size, fit.particles)", needed, device)


def activations(spec: MLPSpec | ConvSpec | ResNetV2Spec, image_shape: Sequence[int]) -> int:
    """About how many numbers a network keeps of one image (C, H, W) for its gradients."""
    pixels = math.prod(image_shape)
    if spec.kind == "mlp":
        # The normalised, the linear, its silu and the sum.
        return 4 * spec.depth * spec.width + 2 * pixels
    # Halving the grid leaves a quarter of it, so all sizes together have 4/3 of the largest.
    cells = 4 * image_shape[1] * image_shape[2] // 3
    layers = 8 * spec.blocks if spec.kind == "resnet_v2" else 1
    return layers * spec.channels * cells + 4 * spec.width + 2 * pixels
