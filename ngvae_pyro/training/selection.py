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
from typing import Literal


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
