"""Moves between informative and uninformative latents: what gradients alone do not do.

The price of an informative latent is flat once the latent is informative, and its relaxation is
flat once it is not, so gradient steps neither switch a redundant latent off nor let a missing one
in. A move is a jump in the parameters of one latent, kept only if it pays (as birth and delete
moves do for variational mixtures; Hughes and Sudderth, 2013):

- *birth*. An uninformative latent has precision 1, so it can only carry information by a wide
  loc; the variance of its loc tells on it. The jump divides loc by its standard deviation and
  multiplies the decoder's column by it, which leaves the reconstruction unchanged, and sets
  p near 1: the same code with a hundredth of the noise.
- *death*. The jump sets loc to 0 and p near 0, and the decoder's column to 0 (its mean
  contribution goes into the bias).

Training is then forked: a fixed number of steps with and without the jump, on the same batches
and the same noise, and the branch with the higher ELBO on a fixed part of the training data
continues.

At the end :func:`decorrelate` chooses, among coordinates that fit the data alike, those in which
the informative latents are uncorrelated.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ngvae_pyro.guide import NormalGammaGuide
from ngvae_pyro.model import VAE

# Variance of loc above which an uninformative latent leaks; ten times the threshold of an active
# unit (Burda et al., 2015), far below the 1 to 12 seen where a factor leaks.
LEAK = 0.1

# Eigenvalue of the correlations up to which latents are linearly dependent in float32; its computed
# sign is that of a rounding error.
SINGULAR = 1e-6

# Standard deviation of loc, relative to its largest value (at least 1), up to which it is the same
# for all images in float32: some roundings of the layers before it.
STILL = 1e-5


@dataclass(frozen=True)
class MoveRecord:
    """What became of one proposed move; losses are -ELBO per image in nats, after the fork."""

    kind: Literal["birth", "death"]
    latent: int
    step: int
    loss_without: float
    loss_with: float

    @property
    def accepted(self) -> bool:
        return self.loss_with < self.loss_without


def forget(optimizer: torch.optim.Optimizer, parameter: Tensor, index: Any) -> None:
    """Set Adam's running mean of a part of a parameter to 0; before its first step it has none."""
    state = optimizer.state[parameter]
    if "exp_avg" in state:
        state["exp_avg"][index] = 0.0


@torch.no_grad()
def jump(
    kind: Literal["birth", "death"],
    model: VAE,
    guide: NormalGammaGuide,
    optimizer: torch.optim.Optimizer,
    latent: int,
    loc: Tensor,
) -> None:
    """Make latent ``latent`` informative (birth) or uninformative (death), in place.

    Args:
        kind: Which move.
        model: Its decoder's stem is a linear layer of z.
        guide: Its encoder's head is a linear layer that gives (loc, logits).
        optimizer: Its running means of the changed rows are set to 0.
        latent: Index k.
        loc: Posterior means of that latent over a sample of the data, shape (N,).
    """
    head, stem = guide.encoder.head, model.decoder.stem
    loc_row, logit_row = latent, latent + model.latent_size
    mean, std = loc.mean(), loc.std()
    stem.bias.add_(mean * stem.weight[:, latent])
    if kind == "birth":
        stem.weight[:, latent] *= std
        head.weight[loc_row] /= std
        head.bias[loc_row] = (head.bias[loc_row] - mean) / std
    else:
        stem.weight[:, latent] = 0.0
        head.weight[loc_row] = 0.0
        head.bias[loc_row] = 0.0
    head.weight[logit_row] = 0.0
    born, dead = guide.settled
    head.bias[logit_row] = born if kind == "birth" else dead
    for parameter in (head.weight, head.bias):
        forget(optimizer, parameter, [loc_row, logit_row])
    forget(optimizer, stem.weight, (slice(None), latent))


@torch.no_grad()
def decorrelate(
    model: VAE,
    guide: NormalGammaGuide,
    optimizer: torch.optim.Optimizer,
    latents: Tensor,
    loc: Tensor,
) -> bool:
    """Make the posterior means of some latents uncorrelated over the data, in place.

    With S their standard deviations and R their correlations, loc becomes A loc and the decoder's
    columns W become W A^-1, A = S R^-1/2 S^-1: each latent keeps its variance, changes as little as
    it can (R^-1/2 is the symmetric root: Kessy, Lewin and Strimmer, 2018, "Optimal whitening and
    decorrelation", ZCA-cor), and the reconstruction at the mean is unchanged. A latent whose loc is
    the same for all images has no correlation, and stays as it is. Of linearly dependent latents,
    such as M of them over M images or fewer, R has no root, and all stay as they are.

    Args:
        model: Its decoder's stem is a linear layer of z.
        guide: Its encoder's head is a linear layer that gives (loc, logits).
        optimizer: Its running means of the changed rows are set to 0.
        latents: Indices k, shape (M,).
        loc: Posterior means of these latents over a sample of the data, shape (N, M).

    Returns:
        Whether anything has changed.
    """
    varies = loc.std(0) > STILL * loc.abs().amax(0).clamp(min=1.0)
    latents, loc = latents[varies], loc[:, varies].contiguous()
    if len(latents) < 2:
        return False
    head, stem = guide.encoder.head, model.decoder.stem
    std = loc.double().std(0)
    values, vectors = torch.linalg.eigh(loc.double().T.corrcoef())
    if not (values > SINGULAR).all():
        return False
    root = vectors @ values.rsqrt().diag() @ vectors.T
    change = (std.diag() @ root @ (1.0 / std).diag()).to(loc.dtype)
    head.weight[latents] = change @ head.weight[latents]
    head.bias[latents] = change @ head.bias[latents]
    stem.weight[:, latents] = torch.linalg.solve(change, stem.weight[:, latents], left=False)
    for parameter in (head.weight, head.bias):
        forget(optimizer, parameter, latents)
    forget(optimizer, stem.weight, (slice(None), latents))
    return True
