"""Pyro's ELBOs, with tensors where Pyro's own read numbers back.

``Trace_ELBO`` and ``TraceMeanField_ELBO`` convert the log density of each site to a Python number
on the way, and check it for NaN. Each of these synchronises a GPU, and a value that is read back
cannot be recorded (:mod:`ngvae_pyro.training.program`). These two have the same estimators, term by
term, and can be used wherever Pyro's can.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from pyro.distributions import Normal
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.infer.util import check_fully_reparametrized, is_validation_enabled
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from ngvae_pyro.distributed import ALONE


def sites(trace: Trace) -> Mapping[str, Any]:
    """Sites of a trace by name; their keys are more than Pyro's type of a message declares."""
    return trace.nodes


class Objective:
    """The methods that ``fit`` needs from an objective beyond Pyro's ELBO.

    ``fraction`` is the position in the training, from 0 to 1, for objectives that change with it.
    It is 1 unless ``fit`` sets it, to a tensor that it then updates.
    """

    fraction: float | Tensor = 1.0
    # How many z are drawn for each particle.
    draws = 1

    def advance(self, fraction: float) -> Hashable:
        """Switch on and off the parts that begin or end at some fraction of training.

        ``fit`` calls it before each step.

        Args:
            fraction: Position in the training, from 0 to 1.

        Returns:
            Which parts are on, if that makes a difference to the operations of a step.
        """
        return None

    def parameter_groups(self, device: torch.device) -> list[dict[str, Any]]:
        """Parameters of the objective itself, moved to a device, with their Adam settings."""
        return []

    def numbers_kept(self, rows: int, latents: int) -> int:
        """How many numbers it keeps for the gradient, besides those that the networks keep.

        Args:
            rows: Images in a batch.
            latents: K.
        """
        return 0


class TraceELBO(Objective, Trace_ELBO):
    """``Trace_ELBO``: E_q[log p(x, z) - log q(z | x)], sampled, with score-function gradients."""

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """-ELBO in nats, summed over the batch, with the derivative of the surrogate loss."""
        loss: Any = 0.0
        surrogate: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            particle = self._differentiable_loss_particle(model_trace, guide_trace)
            loss = loss + particle[0] / self.num_particles
            surrogate = surrogate + particle[1] / self.num_particles
        total: Tensor = loss + (surrogate - surrogate.detach())
        return total

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The same as a number, without gradient."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        elbo: Any = 0.0
        for site in sites(model_trace).values():
            if site["type"] == "sample":
                elbo = elbo + site["log_prob_sum"]
        surrogate, log_r = elbo, None
        for site in sites(guide_trace).values():
            if site["type"] != "sample":
                continue
            _, score_function, entropy = site["score_parts"]
            elbo = elbo - site["log_prob_sum"]
            if not is_identically_zero(entropy):
                surrogate = surrogate - entropy.sum()
            if not is_identically_zero(score_function):
                if log_r is None:
                    log_r = _compute_log_r(model_trace, guide_trace)
                downstream = log_r.sum_to(site["cond_indep_stack"])
                surrogate = surrogate + (downstream * score_function).sum()
        return -elbo.detach(), -surrogate


class MeanFieldELBO(TraceELBO, TraceMeanField_ELBO):
    """``TraceMeanField_ELBO``: the KL of each latent site in closed form where there is one."""

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        loss: Any = 0.0
        for name, site in sites(model_trace).items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                loss = loss - site["log_prob_sum"]
                continue
            q = sites(guide_trace)[name]
            if is_validation_enabled():
                check_fully_reparametrized(q)
            try:
                kl = kl_divergence(q["fn"], site["fn"])
            except NotImplementedError:
                entropy = q["score_parts"].entropy_term
                loss = loss - site["log_prob_sum"] + entropy.sum()
            else:
                loss = loss + scale_and_mask(kl, scale=q["scale"], mask=q["mask"]).sum()
        for name, q in sites(guide_trace).items():
            if q["type"] == "sample" and name not in model_trace.nodes:
                loss = loss + q["score_parts"].entropy_term.sum()
        return loss.detach(), loss


class PenalisedELBO(MeanFieldELBO):
    """-ELBO plus a penalty, with the KL in closed form where there is one."""

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        """The penalty of a batch, which is added to its -ELBO, in nats.

        Args:
            z: Draws of q, shape (B, K).
            q: q(z | x), batch shape (B, K).
            p: Prior p(z), batch shape (B, K) or one that broadcasts to it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it adds to the ELBO")

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        site, prior = sites(guide_trace)["z"], sites(model_trace)["z"]["fn"].base_dist
        # A penalty may depend on the whole batch, of which a process may have only some rows. Then
        # every process computes all of it and takes an equal share.
        team = site["infer"].get("team", ALONE)
        parts = (site["value"], site["fn"].base_dist, prior)
        penalty = self.penalty(*(team.whole(part, weight=team.size) for part in parts)) / team.size
        return loss + penalty.detach(), surrogate + penalty
