"""Objectives of the Normal-Gamma guides that have one of their own."""

from collections.abc import Callable
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

from ngvae_pyro.distributions import (
    NormalGammaMarginal,
    NormalGammaPrior,
    SpikeSlabPrior,
    conditional_kl,
    kl_bound,
)
from ngvae_pyro.objectives.base import TraceELBO


class MixtureELBO(TraceELBO):
    """-ELBO of a :class:`~ngvae_pyro.distributions.NormalGammaMixture` posterior, its KL closed.

        E[-log p(x | z)] + sum_k [KL of z_k given the precision + bound of KL of the precision_k]

    with :func:`~ngvae_pyro.distributions.conditional_kl` and
    :func:`~ngvae_pyro.distributions.kl_bound`: nothing but the reconstruction is sampled, and that
    depends on z alone, whose gradient by p is pathwise. It goes with a guide that draws z from the
    posterior's ``marginal``; for any other guide it is ``Trace_ELBO``. Site weights act on the two
    parts by the names of the sites, ``z`` and ``precision``.

    Args:
        prior: Of (z, precision), batch shape (K,).
    """

    def __init__(self, prior: SpikeSlabPrior | NormalGammaPrior, **settings: Any) -> None:
        super().__init__(**settings)
        self.prior = prior

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        marginal = guide_trace.nodes["z"]["fn"].base_dist
        if not isinstance(marginal, NormalGammaMarginal):
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        q = marginal.joint
        observed = [site for site in model_trace.nodes.values() if site.get("is_observed")]
        loss = -sum(site["log_prob_sum"] for site in observed if site["type"] == "sample")
        parts = {
            "z": conditional_kl(q, self.prior),
            "precision": kl_bound(q.precision, self.prior.precision),
        }
        for name, kl in parts.items():
            loss = loss + (guide_trace.nodes[name]["scale"] * kl).sum()
        return loss.detach(), loss


class Repeated(Messenger):
    """Draws every site M times but the precision, each draw with the weight 1 / M.

    To Pyro it is a plate of size M around the plate of the data, scaled by 1 / M, that leaves the
    precision out. Model and guide need not know of it: z becomes (M, B, K), which the decoder
    takes in one pass.
    """

    def __init__(self, draws: int) -> None:
        super().__init__()
        self.draws = draws

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] == "precision" or site_is_subsample(msg):
            return
        frame = CondIndepStackFrame("draws", -2, self.draws, 0)
        msg["cond_indep_stack"] = (frame, *msg["cond_indep_stack"])
        fn: Any = msg["fn"]
        msg["fn"] = fn.expand((self.draws, fn.batch_shape[-1]))
        msg["scale"] = msg["scale"] / self.draws


class FlatELBO(TraceELBO):
    """The ELBO of a flat hierarchical posterior: M draws of z share one precision.

        L = E_q(precision | x) [ 1/M sum_m log p(x | z_m) + log p(z_m | precision) / q(z_m |
            precision, x) ] - KL(q(precision | x) || p(precision)),   z_m ~ q(z | precision, x)

    With M = 1 it is ``Trace_ELBO``, and for every M it has the same expectation, because the mean
    over m enters linearly (Rainforth et al., 2018, "On nesting Monte Carlo estimators",
    arXiv:1709.06181): the bound is that of the relaxed guide. Its variance is v + w / M, where v is
    due to the precision and w to z given the precision. On sprites v is small: of a trained pair,
    4 draws divide the variance of the gradient by 4, at twice the time of a step.

    Args:
        draws: M. Each costs a pass of the decoder, none of the encoder.
    """

    def __init__(self, draws: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.draws = draws

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return super()._get_trace(self.repeated(model), self.repeated(guide), args, kwargs)

    def repeated(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A model or a guide whose sites below the precision are drawn M times."""
        return Repeated(self.draws)(fn)
