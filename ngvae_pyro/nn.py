"""Encoders and decoders: plain torch modules built from specs.

All kinds are ``trunk`` networks with one linear layer at the latent end (``Encoder.head``,
``Decoder.stem``), so that the moves of :mod:`ngvae_pyro.training.actions` can rescale or silence
one latent there without touching the rest.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ngvae_pyro.contexts import covariates, in_mode
from ngvae_pyro.errors import UserError, described
from ngvae_pyro.specs import (
    Conv1dSpec,
    Conv3dSpec,
    ConvSpec,
    MLPSpec,
    OwnSpec,
    ResidualConvSpec,
    ResNetV2Spec,
    SeparableSpec,
)

CONV_SIZES = (28, 32, 64)
# Patches along the longer side of an image, at most.
PATCHES = 16
# Length from which conv1d networks halve no more, and longest side from which conv3d networks do.
SHORTEST, SMALLEST = 8, 4

# What torch and Python raise in code of somebody else's that is wrong: where shapes do not match, a
# name or a key is not there, a number is divided by 0 or a file is missing.
MISTAKES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, TypeError, ValueError),
)

AnyNetwork = (
    MLPSpec | ConvSpec | ResNetV2Spec | ResidualConvSpec | Conv1dSpec | Conv3dSpec | OwnSpec
)
AnyDecoder = SeparableSpec | AnyNetwork


class ResidualLayer(nn.Module):
    """h + silu(W norm(h) + b), with layer normalisation (Ba, Kiros and Hinton, 2016).

    A decoder of few latents is a steep function of few numbers, and learns slowly without the norm:
    decoding the images of seven-factor sprites from their true factors (8 layers, 2,500 steps), the
    MSE was 1.4e-4 with it and 3.5e-4 without. With 15 latents the two differ by a fifth.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + nn.functional.silu(self.linear(self.norm(h)))
        return out


def _norm(channels: int) -> nn.Module:
    # Not batch normalisation: an image would depend on the others in its batch, evaluation on
    # running averages, and a Jacobian under vmap would have to write to them. Groups have about 16
    # channels, because normalising a single channel removes the colour of an image.
    return nn.GroupNorm(math.gcd(max(1, channels // 16), channels), channels)


class PreActivationBlock(nn.Module):
    """skip(h) + conv(act(norm(conv(act(norm(h)))))), the residual block of ResNetV2.

    He, Zhang, Ren and Sun (2016), "Identity mappings in deep residual networks", arXiv:1603.05027.
    This one has group normalisation (Wu and He, 2018, arXiv:1803.08494) and silu. ``down`` halves
    the grid, by a stride on one path and by averaging on the other; ``up`` repeats each cell, which
    avoids the checkerboard of strided transposed convolutions (Odena, Dumoulin and Olah, 2016,
    "Deconvolution and checkerboard artifacts", Distill).
    """

    def __init__(
        self, before: int, after: int, resize: Literal["down", "up", "keep"] = "keep"
    ) -> None:
        super().__init__()
        up = nn.Upsample(scale_factor=2) if resize == "up" else nn.Identity()
        down = nn.AvgPool2d(2) if resize == "down" else nn.Identity()
        project = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        stride = 2 if resize == "down" else 1
        # The projection commutes with both, so it is computed on the smaller grid.
        self.skip = nn.Sequential(down, project, up)
        self.residual = nn.Sequential(
            *(_norm(before), nn.SiLU(), up),
            nn.Conv2d(before, after, 3, stride=stride, padding=1),
            *(_norm(after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1)),
        )

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.skip(h) + self.residual(h)
        return out


class SequenceBlock(nn.Module):
    """skip(h) + conv(act(norm(conv(act(norm(h)))))) along sequences (B, channels, L).

    :class:`PreActivationBlock` in one dimension, with kernels of 5 and for any L: "down" leaves
    ceil(L / 2), by a stride on one path and by averaging on the other, and a number is the length
    to which cells are repeated.
    """

    convolution: type[nn.Module] = nn.Conv1d
    pooling: type[nn.Module] = nn.AvgPool1d
    kernel = 5

    def __init__(
        self,
        channels: int,
        resize: Literal["down", "keep"] | int | tuple[int, ...] = "keep",
        pool: int | tuple[int, ...] = 2,
    ) -> None:
        super().__init__()
        up = nn.Identity() if isinstance(resize, str) else nn.Upsample(resize)
        halve = self.pooling(pool, ceil_mode=True, count_include_pad=False)
        stride, padding = 2 if resize == "down" else 1, self.kernel // 2
        first = self.convolution(channels, channels, self.kernel, stride=stride, padding=padding)
        second = self.convolution(channels, channels, self.kernel, padding=padding)
        self.skip = nn.Sequential(halve if resize == "down" else nn.Identity(), up)
        self.residual = nn.Sequential(
            *(_norm(channels), nn.SiLU(), up, first),
            *(_norm(channels), nn.SiLU(), second),
        )

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.skip(h) + self.residual(h)
        return out


class VolumeBlock(SequenceBlock):
    """The same of volumes (B, channels, D, H, W), with kernels of 3.

    A side of 1 stays: of such, ``pool`` is 1.
    """

    convolution = nn.Conv3d
    pooling = nn.AvgPool3d
    kernel = 3


class ResidualConvolution(nn.Module):
    """h + silu(conv(norm(h))) on a grid (B, rows, columns, channels), by 3x3 convolutions.

    The norm is over the channels of each cell. The channels come last, the layout in which a CPU
    convolves fastest, so that linear layers on both sides need no copy.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        out = self.conv(self.norm(h).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return h + nn.functional.silu(out)


class Patches(nn.Module):
    """The grid of patches of images (C, H, W), at most ``PATCHES`` in each direction.

    Each axis is cut into patches of ceil(side / PATCHES) pixels; where the last one reaches beyond
    the image, it is filled with zeros, which are cut off again on the way back.

    Args:
        image_shape: (C, H, W).
    """

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.channels, *self.sides = image_shape
        self.patch = [-(-side // PATCHES) for side in self.sides]
        self.grid = [-(-side // part) for side, part in zip(self.sides, self.patch, strict=True)]
        # Numbers in a patch.
        self.size = self.channels * math.prod(self.patch)


class ToPatches(Patches):
    """Images (B, C, H, W) to patches (B, rows, columns, size)."""

    def forward(self, x: Tensor) -> Tensor:
        (rows, columns), (high, wide) = self.grid, self.patch
        beyond = [0, columns * wide - self.sides[1], 0, rows * high - self.sides[0]]
        if any(beyond):
            x = nn.functional.pad(x, beyond)
        # As the trainer lays out the images of a network with convolutions: channels last.
        parts = x.permute(0, 2, 3, 1).reshape(-1, rows, high, columns, wide, self.channels)
        return parts.transpose(2, 3).flatten(3)


class FromPatches(Patches):
    """Patches (B, rows, columns, size) to images (B, C, H, W), sub-pixel convolution's last step.

    Shi et al. (2016), "Real-time single image and video super-resolution using an efficient
    sub-pixel convolutional neural network", arXiv:1609.05158.
    """

    def forward(self, h: Tensor) -> Tensor:
        (rows, columns), (high, wide) = self.grid, self.patch
        parts = h.reshape(-1, rows, columns, high, wide, self.channels).transpose(2, 3)
        padded = parts.reshape(-1, rows * high, columns * wide, self.channels)
        return padded[:, : self.sides[0], : self.sides[1]].permute(0, 3, 1, 2)


class SumOfProducts(nn.Module):
    """Features h (B, width) to images (B, C, H, W), each a tensor of rank R at most.

    image_cij = bias_c + R^-1/2 sum_r channel_cr row_ir column_jr, where all three are linear in h:
    the canonical polyadic form of a tensor; Kolda and Bader (2009), "Tensor decompositions and
    applications", SIAM Review 51(3). With one channel there are no weights of channels.

    Where something is along an axis, and how large, is in the weights of that axis, H + W numbers
    instead of H W. So few latents are soon drawn well: decoding seven-factor sprites of 32x32 from
    their true factors (1,200 steps), the MSE was 5e-4, and 3.2e-3 with a perceptron of twice as
    many layers, whose step takes a quarter longer (``benchmarks/decoders.py``).

    Args:
        width: Numbers in h.
        image_shape: (C, H, W).
        rank: R.
    """

    def __init__(self, width: int, image_shape: Sequence[int], rank: int) -> None:
        super().__init__()
        channels, height, wide = image_shape
        self.rank = rank
        self.rows = nn.Linear(width, height * rank)
        self.columns = nn.Linear(width, rank * wide)
        self.channels = nn.Linear(width, channels * rank) if channels > 1 else None
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        rows = self.rows(h).unflatten(-1, (1, -1, self.rank)) * self.rank**-0.5
        columns = self.columns(h).unflatten(-1, (self.rank, -1))
        if self.channels is not None:
            rows = self.channels(h).unflatten(-1, (-1, 1, self.rank)) * rows
        # One product of matrices for all channels.
        out: Tensor = (rows.flatten(1, 2) @ columns).unflatten(1, (len(self.bias), -1)) + self.bias
        return out


class Products(nn.Module):
    """Features h (B, width) to images (B, C, H, W): a sum of products, and patches beside it.

    The patches are linear in silu(f + conv(silu(f))), with a 3x3 convolution. f are F features on
    the grid of :class:`Patches`, each a sum of F products like those of :class:`SumOfProducts`:
    f_ijc = F^-1/2 sum_r row_ir column_jr channel_rc. So edges are drawn that follow neither rows
    nor columns, and things that cover others. Decoding 32x32 ellipses from their true factors (800
    steps), the MSE was 1.9e-4, and 2.7e-3 by the sum of products alone.

    Args:
        width: Numbers in h.
        image_shape: (C, H, W).
        rank: Of the sum of products.
        channels: F.
    """

    def __init__(self, width: int, image_shape: Sequence[int], rank: int, channels: int) -> None:
        super().__init__()
        self.whole = SumOfProducts(width, image_shape, rank)
        self.patches = FromPatches(image_shape)
        rows, columns = self.patches.grid
        self.rows = nn.Linear(width, rows * channels)
        self.columns = nn.Linear(width, columns * channels)
        self.channels = nn.Linear(width, channels * channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Linear(channels, self.patches.size)
        # Products draw alone at first, which halves the error of a short training.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def features(self, h: Tensor) -> Tensor:
        """The features f (B, rows, columns, F)."""
        size = self.conv.in_channels
        rows = self.rows(h).unflatten(-1, (-1, 1, size)) * size**-0.5
        columns = self.columns(h).unflatten(-1, (1, -1, size))
        channels = self.channels(h).unflatten(-1, (size, size))
        f: Tensor = ((rows * columns).flatten(1, 2) @ channels).unflatten(1, self.patches.grid)
        return f

    def forward(self, h: Tensor) -> Tensor:
        # Channels last, as a CPU convolves fastest and linear layers take them.
        f = self.features(h)
        more = self.conv(nn.functional.silu(f).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.whole(h) + self.patches(self.out(nn.functional.silu(f + more)))
        return out


class Conditioning(nn.Module):
    """h + V c: what covariates c add to a layer of a network.

    c is what is :func:`ngvae_pyro.contexts.given`, and the reference where nothing is. V begins at
    0 and takes no random numbers: a network begins as it would without covariates.

    Args:
        reference: The mean design (Q,) of the training data; kept with the weights.
        size: Numbers in h.
    """

    reference: Tensor

    def __init__(self, reference: Tensor, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, len(reference)))
        self.register_buffer("reference", reference.to(self.weight))

    def forward(self, h: Tensor) -> Tensor:
        """Add V c to h (..., B, size).

        Raises:
            UserError: If c are not the rows of h.
        """
        c = covariates()
        if c is None:
            c = self.reference
        rows = tuple(h.shape[-c.dim() : -1])
        if tuple(c.shape) != (*rows, len(self.reference)):
            expected = _shape((*h.shape[-2:-1], len(self.reference)))
            raise UserError(f"covariates: expected shape {expected}, got {tuple(c.shape)}")
        return h + nn.functional.linear(c, self.weight)


class Network(nn.Module):
    """A trunk that may compute in bfloat16, next to a float32 layer at the latents.

    A posterior with precision 10,000 has a standard deviation of 0.01, which is the resolution of
    bfloat16 at a loc of 2; so the layer that outputs loc and the one that takes z stay in float32.

    The trunk has images in units of the data, (x - loc) / unit with loc their mean image, if it is
    told these (:func:`ngvae_pyro.likelihoods.units`), so that images of any contrast on any
    background train alike: a step of Adam moves weights by the learning rate, whatever the size of
    what they make. Seven-factor sprites at 0.3 of their contrast were counted as four without, and
    as seven with.

    Args:
        image_shape: (C, H, W), the shape of loc.
    """

    trunk: nn.Module
    loc: Tensor
    unit: Tensor
    compute_dtype = torch.float32
    # Whether the units are known. If not, a training sets those of its data.
    has_units = False
    # About how many numbers are kept for the gradients of one image.
    kept: int
    # Whether the trunk is a user's own, which may need the usual layout of memory.
    own = False
    # Whether the trunk is known to carry out the same operations in every step of a training.
    steady = True
    # What covariates add, if there are any.
    conditioning: Conditioning | None

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.register_module("conditioning", None)
        # Saved with the weights, which mean nothing without them.
        self.register_buffer("loc", torch.zeros(tuple(image_shape)))
        self.register_buffer("unit", torch.ones(()))

    def _load_from_state_dict(self, weights: Any, prefix: str, *rest: Any) -> None:
        # Networks of older versions had images as they are, or as differences from one number.
        loc = weights.get(f"{prefix}loc", torch.zeros(()))
        weights[f"{prefix}loc"] = loc if loc.dim() else loc.expand_as(self.loc)
        weights.setdefault(f"{prefix}unit", torch.ones(()))
        self.has_units = True
        super()._load_from_state_dict(weights, prefix, *rest)

    def set_units(self, loc: float | Tensor, unit: float | Tensor) -> None:
        """Set what image the trunk has as 0, and how far from it what it has as 1 is."""
        self.loc.copy_(torch.as_tensor(loc))
        self.unit.copy_(torch.as_tensor(unit))
        self.has_units = True

    def condition(self, reference: Tensor, size: int) -> None:
        """Take covariates from now on, at a layer of ``size`` numbers."""
        self.conditioning = Conditioning(reference, size)

    def take(self, own: "OwnTrunk", recorded: bool) -> None:
        """Have a user's own trunk; ``recorded`` says that it is steady."""
        self.trunk, self.kept, self.own = own.module, own.kept, True
        self.steady = recorded or of_torch_alone(own.module)

    def through_trunk(self, x: Tensor) -> Tensor:
        """The trunk's output in float32, for an input with one batch axis."""
        out: Tensor
        if self.compute_dtype is torch.float32:
            out = self.trunk(x)
            return out
        with torch.autocast(x.device.type, self.compute_dtype):
            out = self.trunk(x).float()
            return out


class Encoder(Network):
    """Maps images (B, C, H, W) in [0, 1] to ``outputs`` arrays of shape (B, K).

    Args:
        spec: Network of the trunk.
        image_shape: (C, H, W).
        latent_size: K.
        outputs: How many numbers per latent, e.g. 2 for loc and logits.
        missing: Whether values may be missing, NaN. The trunk then has twice the channels: 0, the
            mean image, in the place of a missing value, and after all channels, for each of them, 1
            where it is missing and 0 elsewhere.
        depth: D of volumes.

    Raises:
        UserError: If the network cannot take images of this size.
    """

    def __init__(
        self,
        spec: AnyNetwork,
        image_shape: Sequence[int],
        latent_size: int,
        outputs: int,
        missing: bool = False,
        depth: int | None = None,
    ) -> None:
        super().__init__(image_shape)
        self.missing = missing
        if missing:
            image_shape = (2 * image_shape[0], *image_shape[1:])
        self.outputs = outputs
        # Whether images are counts, of which the trunk has log(1 + x).
        self.of_counts = False
        if spec.kind == "own":
            own = OwnTrunk(spec, "guide.encoder", image_shape, image_shape)
            self.take(own, spec.recorded)
            self.head = nn.Linear(own.features(), outputs * latent_size)
            return
        if spec.kind == "mlp":
            trunk = [
                nn.Flatten(),
                nn.Linear(math.prod(image_shape), spec.width),
                nn.SiLU(),
                *(ResidualLayer(spec.width) for _ in range(spec.depth - 1)),
            ]
        elif spec.kind == "resnet_v2":
            grid, sizes = _resnet_grid(spec, image_shape)
            trunk = [nn.Conv2d(image_shape[0], sizes[0], 3, padding=1)]
            for before, after in pairwise(sizes):
                trunk.append(PreActivationBlock(before, after, "down"))
                trunk += [PreActivationBlock(after, after) for _ in range(spec.blocks - 1)]
            # Not averaged over the grid as in classification: latents encode where things are.
            trunk += [
                *(_norm(sizes[-1]), nn.SiLU(), nn.Flatten()),
                *(nn.Linear(sizes[-1] * grid * grid, spec.width), nn.SiLU()),
            ]
        elif spec.kind == "residual_conv":
            patches = ToPatches(image_shape)
            trunk = [
                *(patches, nn.Linear(patches.size, spec.channels)),
                *(ResidualConvolution(spec.channels) for _ in range(spec.blocks)),
                nn.Flatten(),
                nn.Linear(spec.channels * math.prod(patches.grid), spec.width),
                nn.SiLU(),
                *(ResidualLayer(spec.width) for _ in range(spec.depth - 1)),
            ]
        elif spec.kind == "conv1d":
            lengths, channels = _halved(spec, image_shape), spec.channels
            trunk = [nn.Flatten(2), nn.Conv1d(image_shape[0], channels, 5, padding=2)]
            for _ in lengths[1:]:
                trunk.append(SequenceBlock(channels, "down"))
                trunk += [SequenceBlock(channels) for _ in range(spec.blocks - 1)]
            trunk += [
                *(_norm(channels), nn.SiLU(), nn.Flatten()),
                *(nn.Linear(channels * lengths[-1], spec.width), nn.SiLU()),
            ]
        elif spec.kind == "conv3d":
            volumes, channels = _halved_volumes(spec, image_shape, depth), spec.channels
            trunk = [
                nn.Unflatten(2, volumes[0][:2]),
                nn.Conv3d(image_shape[0], channels, 3, padding=1),
            ]
            for deep, high, wide in volumes[:-1]:
                pool = min(deep, 2), min(high, 2), min(wide, 2)
                trunk.append(VolumeBlock(channels, "down", pool))
                trunk += [VolumeBlock(channels) for _ in range(spec.blocks - 1)]
            trunk += [
                *(_norm(channels), nn.SiLU(), nn.Flatten()),
                *(nn.Linear(channels * math.prod(volumes[-1]), spec.width), nn.SiLU()),
            ]
        else:
            grid, layers = _conv_grid(spec.kind, image_shape)
            sizes = [image_shape[0]] + [spec.channels] * layers
            trunk = []
            for before, after in pairwise(sizes):
                trunk += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
            trunk += [
                nn.Flatten(),
                nn.Linear(spec.channels * grid * grid, spec.width),
                nn.ReLU(),
                nn.Linear(spec.width, spec.width),
                nn.ReLU(),
            ]
        self.trunk, self.kept = nn.Sequential(*trunk), activations(spec, image_shape)
        self.head = nn.Linear(spec.width, outputs * latent_size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        absent = x.isnan() if self.missing else None
        if self.of_counts:
            x = x.log1p()
        x = (x - self.loc) / self.unit
        if absent is not None:
            x = x.masked_fill(absent, 0.0)
        if self.conditioning is not None:
            # At the input, where every trunk takes it, and all layers follow.
            x = self.conditioning(x.flatten(1)).view_as(x)
        if absent is not None:
            x = torch.cat((x, absent.to(x.dtype)), -3)
        out: Tensor = self.head(self.through_trunk(x).flatten(1))
        return out.chunk(self.outputs, -1)


class Decoder(Network):
    """Maps latents (..., K) to images (..., C, H, W), one number per pixel and channel.

    Args:
        spec: Network of the trunk.
        image_shape: (C, H, W).
        latent_size: K.
        depth: D of volumes.

    Raises:
        UserError: If the network cannot make images of this size.
    """

    def __init__(
        self,
        spec: AnyDecoder,
        image_shape: Sequence[int],
        latent_size: int,
        depth: int | None = None,
    ) -> None:
        super().__init__(image_shape)
        # Logits are in no units.
        self.of_logits = False
        self.image_shape = tuple(image_shape)
        self.stem = nn.Linear(latent_size, spec.width)
        if spec.kind == "own":
            own = OwnTrunk(spec, "model.decoder", image_shape, (spec.width,))
            own.check_images(image_shape)
            self.take(own, spec.recorded)
            return
        if spec.kind == "mlp" or spec.kind == "separable":
            trunk = [nn.SiLU(), *(ResidualLayer(spec.width) for _ in range(spec.depth - 1))]
            if spec.kind == "separable" and image_shape[1] > 1:
                size = spec.width, image_shape, spec.rank
                trunk.append(
                    Products(*size, spec.channels) if spec.channels else SumOfProducts(*size)
                )
            else:
                trunk.append(nn.Linear(spec.width, math.prod(image_shape)))
        elif spec.kind == "resnet_v2":
            grid, sizes = _resnet_grid(spec, image_shape)
            sizes.reverse()
            trunk = [
                *(nn.SiLU(), nn.Linear(spec.width, sizes[0] * grid * grid)),
                nn.Unflatten(-1, (sizes[0], grid, grid)),
            ]
            for before, after in pairwise(sizes):
                trunk.append(PreActivationBlock(before, after, "up"))
                trunk += [PreActivationBlock(after, after) for _ in range(spec.blocks - 1)]
            trunk += [
                *(_norm(sizes[-1]), nn.SiLU()),
                nn.Conv2d(sizes[-1], image_shape[0], 3, padding=1),
            ]
        elif spec.kind == "residual_conv":
            images = FromPatches(image_shape)
            trunk = [
                nn.SiLU(),
                *(ResidualLayer(spec.width) for _ in range(spec.depth - 1)),
                nn.Linear(spec.width, spec.channels * math.prod(images.grid)),
                nn.Unflatten(-1, (*images.grid, spec.channels)),
                *(ResidualConvolution(spec.channels) for _ in range(spec.blocks)),
                *(nn.Linear(spec.channels, images.size), images),
            ]
        elif spec.kind == "conv1d":
            lengths, channels = _halved(spec, image_shape), spec.channels
            trunk = [
                *(nn.SiLU(), nn.Linear(spec.width, channels * lengths[-1])),
                nn.Unflatten(-1, (channels, lengths[-1])),
            ]
            for length in lengths[-2::-1]:
                trunk.append(SequenceBlock(channels, length))
                trunk += [SequenceBlock(channels) for _ in range(spec.blocks - 1)]
            trunk += [
                *(_norm(channels), nn.SiLU()),
                nn.Conv1d(channels, image_shape[0], 5, padding=2),
            ]
        elif spec.kind == "conv3d":
            volumes, channels = _halved_volumes(spec, image_shape, depth), spec.channels
            trunk = [
                *(nn.SiLU(), nn.Linear(spec.width, channels * math.prod(volumes[-1]))),
                nn.Unflatten(-1, (channels, *volumes[-1])),
            ]
            for sides in volumes[-2::-1]:
                trunk.append(VolumeBlock(channels, sides))
                trunk += [VolumeBlock(channels) for _ in range(spec.blocks - 1)]
            trunk += [
                *(_norm(channels), nn.SiLU()),
                nn.Conv3d(channels, image_shape[0], 3, padding=1),
                nn.Flatten(2, 3),
            ]
        else:
            grid, layers = _conv_grid(spec.kind, image_shape)
            flat = spec.channels * grid * grid
            trunk = [
                nn.ReLU(),
                nn.Linear(spec.width, spec.width),
                nn.ReLU(),
                nn.Linear(spec.width, flat),
                nn.ReLU(),
                nn.Unflatten(-1, (spec.channels, grid, grid)),
            ]
            sizes = [spec.channels] * layers + [image_shape[0]]
            for before, after in pairwise(sizes):
                trunk += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
            trunk.pop()
        self.trunk, self.kept = nn.Sequential(*trunk), activations(spec, image_shape)

    def forward(self, z: Tensor) -> Tensor:
        # Fold leading axes (draws, particles), because transposed convolutions take one batch axis.
        h = self.stem(z)
        if self.conditioning is not None:
            h = self.conditioning(h)
        out = self.through_trunk(h.reshape(-1, h.shape[-1]))
        out = out.reshape(*z.shape[:-1], *self.image_shape)
        return out if self.of_logits else self.loc + self.unit * out


class OwnTrunk:
    """A trunk that a user's factory makes, with what it makes of two inputs.

    Args:
        spec: The factory and its arguments.
        where: Key of the spec, for messages.
        image_shape: (C, H, W).
        inputs: Shape of one input, without the batch axis.

    Raises:
        UserError: If there is no such factory, it makes no network, or one that cannot be trained
            here; the message says why.
    """

    def __init__(
        self, spec: OwnSpec, where: str, image_shape: Sequence[int], inputs: Sequence[int]
    ) -> None:
        self.where = where
        factory = imported(spec.factory, f"{where}.factory")
        self.name = factory.__name__
        arguments = (tuple(image_shape), spec.width), dict(spec.options)
        try:
            inspect.signature(factory).bind(*arguments[0], **arguments[1])
        except TypeError as error:
            raise UserError(
                f"{where}.options: {self.name} is called as {self.name}(image_shape, width, "
                f"**options), and does not take these: {error}"
            ) from None
        # A check of memory asks for shapes alone, which only the module itself can tell.
        unreal = torch.get_default_device().type == "meta"
        device = torch.device("cpu") if unreal else torch.get_default_device()
        with device:
            try:
                self.module = factory(*arguments[0], **arguments[1])
            except MISTAKES as error:
                raise self._refused(f"cannot be made: {first_line(error)}") from error
            self._check_module()
            # Not from torch's generator, which determines the weights that are made next.
            own = torch.Generator(device).manual_seed(0)
            x = torch.randn(2, *inputs, generator=own)
            with in_mode(False, self.module):
                with torch.enable_grad():
                    self.output, self.kept = self._called(x)
                with torch.no_grad():
                    alone = self._called(x[:1])[0]
        self._check_output(alone)

    def _refused(self, reason: str) -> UserError:
        return UserError(f"{self.where}: {self.name}: {reason}")

    def _check_module(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise self._refused(f"expected a torch.nn.Module, got {described(self.module)}")
        for name, value in self.module.state_dict().items():
            if not isinstance(value, Tensor):
                raise self._refused(f"expected tensors in its state_dict(), got {name}, {value!r}")

    def _called(self, x: Tensor) -> tuple[Tensor, int]:
        """The module's output for two inputs or one, and numbers kept for one's gradients."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            # By their memory, which views share.
            memory = tensor.untyped_storage()
            kept[memory.data_ptr()] = memory.nbytes()
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = self.module(x)
        except MISTAKES as error:
            reason = f"fails at an input of shape {tuple(x.shape)}: {first_line(error)}"
            raise self._refused(reason) from error
        if not isinstance(output, Tensor) or output.dtype is not torch.float32:
            got = output.dtype if isinstance(output, Tensor) else described(output)
            raise self._refused(f"expected to return a tensor of float32, got {got}")
        weights = {p.untyped_storage().data_ptr() for p in self.module.parameters()}
        numbers = sum(size for memory, size in kept.items() if memory not in weights)
        return output.detach(), numbers // (x.element_size() * len(x))

    def _check_output(self, alone: Tensor) -> None:
        """Refuse an output that depends on the other images of the batch."""
        reason = (
            "the ELBO of an image must not depend on the other images of its batch; use GroupNorm "
            "or LayerNorm"
        )
        # After the call, in which lazy modules become what they are.
        for name, part in self.module.named_modules():
            over_images = isinstance(part, _InstanceNorm) and part.track_running_stats
            if isinstance(part, _BatchNorm) or over_images:
                raise self._refused(f"{name or 'it'} is a {type(part).__name__}, and {reason}")
        if self.output.dim() < 2 or len(self.output) != 2:
            raise self._refused(
                f"expected (B, ...) for each B inputs, got {tuple(self.output.shape)} for 2"
            )
        first = self.output[:1]
        if alone.shape != first.shape or (alone - first).norm() > 1e-3 * first.norm():
            raise self._refused(f"gives something else for an input alone, and {reason}")

    def features(self) -> int:
        """How many features it gives for an image."""
        return self.output[0].numel()

    def check_images(self, image_shape: Sequence[int]) -> None:
        """Refuse outputs that are not images (C, H, W), nor all of their numbers in a row."""
        got = tuple(self.output.shape[1:])
        sides = [side for side in image_shape if side > 1]
        if [side for side in got if side > 1] != sides and got != (math.prod(image_shape),):
            expected = ("B", *image_shape)
            raise self._refused(f"expected images {_shape(expected)}, got {_shape(('B', *got))}")


def first_line(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _shape(sides: Sequence[object]) -> str:
    return f"({', '.join(map(str, sides))})"


def imported(factory: str | Callable[..., Any], key: str) -> Any:
    """The class that a full name ("package.module:Name") stands for; anything else as it is.

    Args:
        factory: The name.
        key: Key that holds it, for messages.

    Raises:
        UserError: If it cannot be imported, or is no class of :class:`torch.nn.Module`: reading a
            run folder calls nothing else.
    """
    if not isinstance(factory, str):
        return factory
    found = found_by(factory, key)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        got = "none" if found is None else described(found)
        raise UserError(f"{key}: expected a class of torch.nn.Module as {factory}, got {got}")
    return found


def found_by(name: str, key: str) -> Any:
    """What a full name ("package.module:Name") stands for, None if its module has none of it.

    Its module is imported as by ``import``, with the working folder after all other places.

    Args:
        name: The name.
        key: Key that holds it, for messages.

    Raises:
        UserError: If its module cannot be imported.
    """
    module, _, path = name.partition(":")
    folder = str(Path.cwd())
    if beside := folder not in sys.path:
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        raise UserError(
            f"{key}: cannot import {module}: {error}; expected a module of an installed package or "
            f"of the working folder {folder}"
        ) from None
    except (*MISTAKES, SystemExit) as error:
        raise UserError(f"{key}: cannot import {module}: {first_line(error)}") from error
    finally:
        if beside:
            sys.path.remove(folder)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def of_torch_alone(module: nn.Module) -> bool:
    """Whether all that a module does in ``forward`` is torch's own code.

    That is so for modules of ``torch.nn``, and for subclasses of them that only say in ``__init__``
    what they are made of. Code of somebody else's may do something else in each call.
    """
    return all(map(_is_of_torch, module.modules()))


def _is_of_torch(part: nn.Module) -> bool:
    torchs = "torch.nn.", "builtins"
    others = [kind for kind in type(part).__mro__ if not kind.__module__.startswith(torchs)]
    methods = {
        name for kind in others for name, value in vars(kind).items() if hasattr(value, "__get__")
    }
    hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
    if hooks or part._backward_pre_hooks or "forward" in vars(part):
        return False
    # Newer versions of Python keep annotations as functions.
    return methods <= {"__init__", "__annotate__", "__annotate_func__"}


class PatchDiscriminator(nn.Module):
    """Classifies each patch of images (B, C, H, W) as real or not, with one logit per patch.

    It has ``layers`` convolutions of stride 2, each with twice the channels of the one before, and
    one of stride 1 to the logits, all 4x4; with 2 layers a patch is 22 pixels wide, with 3 it is
    46. Isola, Zhu, Zhou and Efros (2017), "Image-to-image translation with conditional adversarial
    networks", arXiv:1611.07004; here with group normalisation, so that each image is judged alone.

    Args:
        image_shape: (C, H, W).
        channels: Channels of the first layer.
        layers: How many layers have stride 2.

    Raises:
        UserError: If the images are too small for so many layers.
    """

    def __init__(self, image_shape: Sequence[int], channels: int = 32, layers: int = 2) -> None:
        super().__init__()
        image_channels, height, width = image_shape
        # The last convolution needs a grid of 2x2.
        if min(height, width) < (smallest := 2 ** (layers + 1)):
            raise UserError(
                f"fit.adversarial.layers: {layers} layers need images of at least "
                f"{smallest}x{smallest}, got {height}x{width}"
            )
        sizes = [channels * 2**n for n in range(layers)]
        parts: list[nn.Module] = [
            nn.Conv2d(image_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for before, after in pairwise(sizes):
            parts += [
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                *(_norm(after), nn.LeakyReLU(0.2)),
            ]
        self.network = nn.Sequential(*parts, nn.Conv2d(sizes[-1], 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def _resnet_grid(spec: ResNetV2Spec, image_shape: Sequence[int]) -> tuple[int, list[int]]:
    """Side of the smallest feature grid, and the channels at each size down to it."""
    grid, layers = _conv_grid(spec.kind, image_shape)
    return grid, [spec.channels * min(2**n, 8) for n in range(layers + 1)]


def _halved(spec: Conv1dSpec, image_shape: Sequence[int]) -> list[int]:
    """The lengths of sequences, from that of the data down to the smallest."""
    _, height, length = image_shape
    if height != 1:
        raise UserError(
            f"the {spec.kind} network takes data of one row (C, 1, L), got {height} rows; set "
            "model.decoder.kind and guide.encoder.kind to 'residual_conv' or 'mlp'"
        )
    lengths = [length]
    while lengths[-1] > SHORTEST:
        lengths.append(-(-lengths[-1] // 2))
    return lengths


def _halved_volumes(
    spec: Conv3dSpec, image_shape: Sequence[int], depth: int | None
) -> list[tuple[int, int, int]]:
    """The sides (D, H, W) of volumes, from those of the data down to the smallest."""
    _, rows, width = image_shape
    if depth is None or rows % depth:
        got = "images" if depth is None else f"{rows} rows and a depth of {depth}"
        raise UserError(
            f"the {spec.kind} network takes volumes (C, D, H, W), got {got}; set "
            "model.decoder.kind and guide.encoder.kind to 'residual_conv' or 'mlp'"
        )
    sides = [(depth, rows // depth, width)]
    while max(sides[-1]) > SMALLEST:
        deep, high, wide = (-(-side // 2) for side in sides[-1])
        sides.append((deep, high, wide))
    return sides


def _conv_grid(kind: str, image_shape: Sequence[int]) -> tuple[int, int]:
    """Side of the smallest feature grid and the number of stride-2 layers down to it."""
    _, height, width = image_shape
    if height != width or height not in CONV_SIZES:
        sizes = ", ".join(f"{s}x{s}" for s in CONV_SIZES)
        raise UserError(
            f"the {kind} network takes {sizes} images, got {height}x{width}; "
            "set model.decoder.kind and guide.encoder.kind to 'residual_conv' or 'mlp'"
        )
    grid, layers = height, 0
    while grid % 2 == 0 and grid > 4:
        grid, layers = grid // 2, layers + 1
    return grid, layers


def activations(spec: AnyDecoder, image_shape: Sequence[int]) -> int:
    """About how many numbers a network keeps for the gradients of one image (C, H, W)."""
    pixels = math.prod(image_shape)
    if spec.kind == "mlp" or (spec.kind == "separable" and image_shape[1] == 1):
        # Each layer keeps the outputs of its norm, linear map, silu and sum.
        return 4 * spec.depth * spec.width + 2 * pixels
    if spec.kind == "separable":
        channels, height, wide = image_shape
        # Likewise, and the weights of rows, columns and channels, and rows for each channel.
        weights = spec.rank * ((2 + channels) * height + wide + channels)
        whole = 4 * spec.depth * spec.width + weights + 2 * pixels
        if not spec.channels:
            return whole
        rows, columns = Patches(image_shape).grid
        # The same of the features, each of their products, and what the convolution keeps.
        weights = spec.channels * (2 * rows + columns + spec.channels)
        return whole + weights + 6 * spec.channels * rows * columns + pixels
    if spec.kind == "residual_conv":
        cells = math.prod(Patches(image_shape).grid)
        # Likewise, and what goes into the grid or comes out of it.
        on_grid = (4 * spec.blocks + 1) * spec.channels * cells
        return on_grid + 4 * spec.depth * spec.width + 2 * pixels
    if spec.kind == "conv1d":
        cells = spec.channels * sum(_halved(spec, image_shape))
        return 8 * spec.blocks * cells + 4 * spec.width + 2 * pixels
    if spec.kind == "conv3d":
        # Each halving leaves an eighth of the cells or more, so all sizes together have at most as
        # many as twice the largest.
        return 16 * spec.blocks * spec.channels * image_shape[1] * image_shape[2] + 2 * pixels
    if spec.kind == "own":
        # What goes in and comes out; what lies between has been measured (``Network.kept``).
        return 4 * spec.width + 2 * pixels
    # Halving the grid leaves a quarter of its cells, so all sizes together have 4/3 of the largest.
    cells = 4 * image_shape[1] * image_shape[2] // 3
    layers = 8 * spec.blocks if spec.kind == "resnet_v2" else 1
    return layers * spec.channels * cells + 4 * spec.width + 2 * pixels
