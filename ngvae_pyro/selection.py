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

At the end :mod:`ngvae_pyro.axes` chooses, among coordinates that fit the data alike, those in which
the informative latents are independent.
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
