"""Pyro's ELBOs, with tensors where Pyro's own read numbers back.

``Trace_ELBO`` and ``TraceMeanField_ELBO`` turn the log density of each site into a Python number on
the way, and look for NaN. A GPU stops for each of them, and what is read back cannot be recorded
(:mod:`ngvae_pyro.training.program`). These two have the same estimators, term by term, and go
wherever Pyro's do.
"""

from collections.abc import Hashable
from typing import Any

import torch
from pyro.distributions import Normal
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.infer.util import check_fully_reparametrized, is_validation_enabled
from torch import Tensor
from torch.distributions import kl_divergence

from ngvae_pyro.distributed import ALONE


class Objective:
    """What ``fit`` asks of an objective beyond Pyro's ELBO.

    ``fraction`` is the position in the training, from 0 to 1, for objectives that change with it.
    It is 1 unless ``fit`` sets it, to a tensor that it writes to.
    """

    fraction: float | Tensor = 1.0
    # How many z are drawn of each particle.
    draws = 1

    def advance(self, fraction: float) -> Hashable:
        """Switch on and off what begins or ends at some fraction; ``fit`` asks before each step.

        Returns:
            What is on, where that makes a difference to the operations of a step.
        """
        return None

    def parameter_groups(self, device: torch.device) -> list[dict[str, Any]]:
        """Parameters of the objective itself, moved to a device, with their Adam settings."""
        return []

    def numbers_kept(self, rows: int, latents: int) -> int:
        """How many numbers it keeps of a batch besides those of the networks, for the gradient."""
        return 0


class TraceELBO(Objective, Trace_ELBO):
    """``Trace_ELBO``: E_q[log p(x, z) - log q(z | x)], sampled, with the gradient of scores."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """-ELBO, whose derivative is that of the surrogate loss."""
        loss: Any = 0.0
        surrogate: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            particle = self._differentiable_loss_particle(model_trace, guide_trace)
            loss = loss + particle[0] / self.num_particles
            surrogate = surrogate + particle[1] / self.num_particles
        return loss + (surrogate - surrogate.detach())

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The same, as a number and without gradient."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        elbo: Any = 0.0
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                elbo = elbo + site["log_prob_sum"]
        surrogate, log_r = elbo, None
        for site in guide_trace.nodes.values():
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
    """``TraceMeanField_ELBO``: the KL of each latent site in closed form, where there is one."""

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        loss: Any = 0.0
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                loss = loss - site["log_prob_sum"]
                continue
            q = guide_trace.nodes[name]
            if is_validation_enabled():
                check_fully_reparametrized(q)
            try:
                kl = kl_divergence(q["fn"], site["fn"])
            except NotImplementedError:
                entropy = q["score_parts"].entropy_term
                loss = loss - site["log_prob_sum"] + entropy.sum()
            else:
                loss = loss + scale_and_mask(kl, scale=q["scale"], mask=q["mask"]).sum()
        for name, q in guide_trace.nodes.items():
            if q["type"] == "sample" and name not in model_trace.nodes:
                loss = loss + q["score_parts"].entropy_term.sum()
        return loss.detach(), loss


class PenalisedELBO(MeanFieldELBO):
    """-ELBO, its KL in closed form where there is one, plus a penalty."""

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        """What a batch adds to its -ELBO, nats.

        Args:
            z: Draws of q, shape (B, K).
            q: q(z | x), batch shape (B, K).
            p: Prior p(z), batch shape (B, K) or one that broadcasts to it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it adds to the ELBO")

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        site, prior = guide_trace.nodes["z"], model_trace.nodes["z"]["fn"].base_dist
        # A penalty may be of the batch as a whole, of which a process may have but some rows: each
        # then computes all of it, and has its share of that.
        team = site["infer"].get("team", ALONE)
        parts = (site["value"], site["fn"].base_dist, prior)
        penalty = self.penalty(*(team.whole(part, weight=team.size) for part in parts)) / team.size
        return loss + penalty.detach(), surrogate + penalty
