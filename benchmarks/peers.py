"""Two other methods that count, as their papers describe them, on this package's networks and data.

FONDUE (Bonheme and Grzes, 2022, arXiv:2209.12806) is the largest number of latents of a vanilla VAE
at which the intrinsic dimensions of the posterior's means and of its draws still agree, after a
short training: a latent that is not needed has a mean that hardly varies and draws that do, which
adds a dimension to the draws alone. :func:`fondue` is its search, doubled from the dimension of the
data and then bisected, each size trained once, and step by step that of the authors' code
(github.com/bonheml/VAE_learning_dynamics). So is the estimate, by maximum likelihood from 20
neighbours of up to 10,000 images; theirs is the mean of five of 80 % of the points, and divides by
k - 2 in place of k - 1, which scales gap and threshold alike. They state the data's dimension as a
whole number, where its own estimate is taken here. Their code had the threshold as a percentage of
that dimension, and has a number of dimensions, by default 1, today; a fifth is that of Algorithm 1
in the paper's first version as others quote it, since of the paper itself only the abstract and the
introduction could be read for this.

IRMAE (Jing, Zbontar and LeCun, 2020, arXiv:2010.00679) is an autoencoder with linear layers between
encoder and decoder, of which gradient descent prefers products of low rank. The count is the number
of singular values of the covariance of the codes that are not small. The authors' code
(github.com/facebookresearch/irmae) has square layers without biases, as here, and draws the values
divided by the largest, without a threshold: the one here is our own. It has 8 layers in its example
for MNIST, and trains by Adam with a rate of 1e-4 for 100 epochs in batches of 32, where the
declared steps are fewer and the rate is larger; the layers of the other data sets in the paper, 2
and 4 as others quote them, could not be looked up.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngvae_pyro.data.batches import Batches
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.likelihoods import units
from ngvae_pyro.machine import resolve_device, seeded
from ngvae_pyro.nn import Decoder, Encoder
from ngvae_pyro.specs import RunSpec
from ngvae_pyro.training.steps import NonFiniteLoss

# FONDUE: the difference that counts as none, in dimensions of the data; the largest size that is
# tried; and the share of the declared steps of the package for which each size is trained, where
# the authors' code has one epoch in batches of 64.
AGREE, MOST, SHARE = 0.2, 512, 0.25
# IRMAE: extra linear layers, the smallest singular value that counts, in units of the largest, and
# the learning rate of Adam.
LAYERS, SMALLEST, RATE = 4, 0.01, 1e-3


def fondue(gap: Callable[[int], float], dimension: float, most: int = MOST) -> int:
    """The largest number of latents at which means and draws still agree.

    Args:
        gap: The dimension of the draws less that of the means, for a number of latents.
        dimension: That of the data; the search begins there, and its fifth counts as no gap.
        most: The largest number to try.

    Returns:
        From 0 to ``most``.
    """
    known: dict[int, float] = {}
    lower, upper, size = 0, most, max(1, round(min(dimension, most)))
    while size != lower:
        if size not in known:
            known[size] = gap(size)
        if known[size] <= AGREE * dimension:
            lower, size = size, min(2 * size, upper)
        else:
            upper, size = size, (lower + size) // 2
    return size


class ImplicitRank(nn.Module):
    """x -> decoder(W_l ... W_1 encoder(x)), with square matrices W and no biases between.

    Args:
        spec: The networks are those that it declares.
        image_shape: (C, H, W).
    """

    def __init__(self, spec: RunSpec, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        size = spec.model.latent_size
        self.encoder = Encoder(spec.guide.encoder, image_shape, size, 1)
        self.linear = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(LAYERS)))
        self.decoder = Decoder(spec.model.decoder, image_shape, size)

    def codes(self, x: Tensor) -> Tensor:
        """(B, K)."""
        return self.linear(self.encoder(x)[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.codes(x))


def trained(spec: RunSpec, data: ImageData) -> ImplicitRank:
    """An IRMAE of a spec's networks, trained on its batches for its steps by the squared error.

    Raises:
        NonFiniteLoss: If it diverges.
    """
    device = resolve_device(spec.fit.device)
    with seeded(spec.fit.seed, device):
        network = ImplicitRank(spec, data.image_shape).to(device)
    for part in (network.encoder, network.decoder):
        part.set_units(*units(data))
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    fit = spec.fit
    batches = Batches(data, fit.batch_size, fit.seed, device, fit.resident_bytes, fit.workers)
    for step in range(fit.steps):
        x = batches[step]
        loss = (network(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), fit.clip_norm)
        if not norm.isfinite():
            raise NonFiniteLoss(step, float(loss), float(norm))
        optimizer.step()
    return network


@torch.no_grad()
def codes_and_error(network: ImplicitRank, data: ImageData) -> tuple[np.ndarray, float]:
    """Codes (N, K) of images, and their mean squared error per pixel."""
    device = next(network.parameters()).device
    codes, errors = [], []
    for part in data.images.split(500):
        x = ImageData.to_unit(part.to(device))
        code = network.codes(x)
        codes.append(code.cpu())
        errors.append((network.decoder(code) - x).square().flatten(1).mean(1).cpu())
    return torch.cat(codes).numpy(), float(torch.cat(errors).mean())


def rank(codes: np.ndarray) -> int:
    """The number of singular values of the covariance of codes (N, K) above the smallest.

    >>> rank(np.diag([3.0, 1.0, 0.01]).repeat(2, 0) * [[1.0], [-1.0]] * 3)
    2
    """
    values: Any = np.linalg.svd(np.cov(codes, rowvar=False).reshape(codes.shape[1], -1))[1]
    return int((values > SMALLEST * values[0]).sum())
