"""A trained pair: what it says of images, and the record of its training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ngvae_pyro.errors import UserError, described
from ngvae_pyro.guide import Guide, NormalGammaGuide
from ngvae_pyro.model import VAE
from ngvae_pyro.selection import MoveRecord
from ngvae_pyro.specs import FitSpec, ScheduleSpec
from ngvae_pyro.verdict import Verdict, judge

if TYPE_CHECKING:
    from ngvae_pyro.plots import Figures

# Images of a row of a traversal.
STEPS = 11


@dataclass
class Fit:
    """A trained pair and the record of its training.

    ``history`` has one row for every look at the monitor images: step, loss (-ELBO per image,
    nats), ``kl`` per site (nats per image), the number of informative latents, and for each latent
    its mean p, ``probs``, and the variance of its posterior mean, ``variance_of_loc``. ``steps``
    counts optimizer steps on the final path, ``extra_steps`` those of the forks that were not kept,
    ``seconds`` all of them. ``starts`` says of each process that had a part in it, one after the
    other, what it was started by and where. ``schedule`` is the one that was followed, and
    ``digest`` that of the training images, of which there were ``count``; they are None for what
    was not trained here.
    """

    model: VAE
    guide: Guide
    spec: FitSpec
    history: list[dict[str, Any]] = field(default_factory=list)
    moves: list[MoveRecord] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    extra_steps: int = 0
    starts: list[dict[str, Any]] = field(default_factory=list)
    schedule: ScheduleSpec | None = None
    digest: str | None = None
    count: int | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def verdict(self) -> Verdict | None:
        """Whether the count of informative latents can be trusted, by the last look at it.

        None for what was not trained here. That of held-out images is in the metrics of
        :func:`ngvae_pyro.evaluate`.
        """
        last = self.history[-1] if self.history else {}
        if "variance_of_loc" not in last:
            return None
        return self.judge(last["probs"], last["variance_of_loc"])

    def judge(self, probs: Sequence[float], variance_of_loc: Sequence[float]) -> Verdict:
        """The verdict on numbers of each latent, whatever images they are of."""
        return judge(
            probs,
            variance_of_loc,
            model=self.model.spec,
            selects=isinstance(self.guide, NormalGammaGuide),
            steps=self.steps,
            history=self.history,
            discrete=self.model.discrete,
        )

    def traverse(
        self,
        images: Any,
        latents: Sequence[int] | None = None,
        steps: int = STEPS,
        base: int = 0,
    ) -> np.ndarray | Tensor:
        """Decoded images as one latent moves and the others stay.

        Each row goes as far as the data do: over the fiftieth of the images (20 at least) whose
        other latents are most like those of the base image, from the 5 % to the 95 % quantile of z,
        or to the last place at which the guide still reads the other informative latents where they
        are (:meth:`ngvae_pyro.traversals.Support.reach`).

        Args:
            images: An array, a tensor or :class:`ngvae_pyro.ImageData` of the model's shape, at
                least 2; the ranges are theirs, so the more the better.
            latents: Numbers of the latents that move, by default the informative ones, most
                informative first.
            steps: How many images a row has, 2 to 1,000, at equal distances in z.
            base: Which of the images gives the latents that stay.

        Returns:
            E[x | z] in [0, 1], (rows, steps, C, H, W): an array for an array, and a tensor, on the
            same device, for a tensor.

        Raises:
            UserError: For images of another shape than the model's, and for numbers of latents or
                images that are not there.
        """
        from ngvae_pyro import traversals

        return traversals.like(images, traversals.traverse(self, images, latents, steps, base))

    def interpolate(self, a: Any, b: Any, steps: int = STEPS) -> np.ndarray | Tensor:
        """Decoded images on the straight line between the codes of two images.

        They are E[x | z] at z = (1 - t) loc(a) + t loc(b) for t from 0 to 1.

        Args:
            a: The first image: an array, a tensor or :class:`ngvae_pyro.ImageData` of one image,
                with or without its axis N.
            b: The last one.
            steps: How many images, 2 to 1,000.

        Returns:
            Images in [0, 1], (steps, C, H, W): an array where ``a`` is one, and a tensor, on the
            same device, for a tensor.

        Raises:
            UserError: For images of another shape than the model's, or more than one.
        """
        from ngvae_pyro import traversals

        return traversals.like(a, traversals.interpolate(self, a, b, steps))

    @property
    def plot(self) -> "Figures":
        """Figures of this fit, each a method that returns matplotlib Axes."""
        from ngvae_pyro.plots import Figures

        return Figures(self)


def check_fit(fit: Any) -> None:
    """Refuse what is no fit.

    Raises:
        UserError: With what to pass.
    """
    if isinstance(fit, type) or not (hasattr(fit, "model") and hasattr(fit, "guide")):
        raise UserError(
            f"fit: expected a trained pair from ngvae_pyro.fit or load_run, got {described(fit)}"
        )


@torch.no_grad()
def site_terms(model: VAE, guide: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One-sample terms of the ELBO for each image of a batch.

    Returns:
        log p(x | z) of shape (B,), and for each latent site its sampled KL term
        log q - log p of shape (B, K), all in nats.
    """
    guide_trace = pyro.poutine.trace(guide).get_trace(x)
    model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(x)
    kl = {}
    for name in guide_trace.stochastic_nodes:
        q: Any = guide_trace.nodes[name]
        p: Any = model_trace.nodes[name]
        if site_is_subsample(q):
            continue
        value = q["value"]
        kl[name] = q["fn"].base_dist.log_prob(value) - p["fn"].base_dist.log_prob(value)
    x_site: Any = model_trace.nodes["x"]
    return x_site["fn"].log_prob(x_site["value"]), kl
