"""Objectives of the Normal-Gamma guides that have one of their own."""

from collections.abc import Callable
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ngvae_pyro.distributions import (
    NormalGammaMarginal,
    NormalGammaPrior,
    SpikeSlabPrior,
    conditional_kl,
    kl_bound,
)
from ngvae_pyro.objectives.base import TraceELBO, sites


class MixtureELBO(TraceELBO):
    """-ELBO of a :class:`~ngvae_pyro.distributions.NormalGammaMixture`, its KL in closed form.

        E[-log p(x | z)] + sum_k [KL of z_k given the precision + bound of KL of the precision_k]

    with :func:`~ngvae_pyro.distributions.conditional_kl` and
    :func:`~ngvae_pyro.distributions.kl_bound`. Only the reconstruction is sampled, and it depends
    on z alone, whose gradient with respect to p is pathwise. The guide must draw z from the
    posterior's ``marginal``; for any other guide this is ``Trace_ELBO``. Site weights act on the
    two parts by the names of the sites, ``z`` and ``precision``.

    Args:
        prior: Returns the prior of (z, precision), batch shape (K,), which may change.
    """

    def __init__(
        self, prior: Callable[[], SpikeSlabPrior | NormalGammaPrior], **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.prior = prior

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        marginal = sites(guide_trace)["z"]["fn"].base_dist
        if not isinstance(marginal, NormalGammaMarginal):
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        q, prior = marginal.joint, self.prior()
        observed = [site for site in sites(model_trace).values() if site.get("is_observed")]
        loss = -sum(site["log_prob_sum"] for site in observed if site["type"] == "sample")
        parts = {
            "z": conditional_kl(q, prior),
            "precision": kl_bound(q.precision, prior.precision),
        }
        for name, kl in parts.items():
            loss = loss + (sites(guide_trace)[name]["scale"] * kl).sum()
        return loss.detach(), loss


class Repeated(Messenger):
    """Draws every site except the precision M times, each draw with the weight 1 / M.

    To Pyro it is a plate of size M around the plate of the data, scaled by 1 / M, that leaves out
    the precision. Model and guide need not know about it: z becomes (M, B, K), which the decoder
    takes in one pass.

    Args:
        draws: M.
    """

    def __init__(self, draws: int) -> None:
        super().__init__()
        self.draws = draws

    def _pyro_sample(self, msg: "Message[..., Any]") -> None:
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
    due to the precision and w to z given the precision. On sprites v is small: for a trained pair,
    4 draws divide the variance of the gradient by 4, at twice the time of a step.

    Args:
        draws: Number M of draws. Each costs a pass of the decoder, none of the encoder.
    """

    def __init__(self, draws: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.draws = draws

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        pair = self.repeated(model), self.repeated(guide)
        traces: tuple[Trace, Trace] = super()._get_trace(*pair, args, kwargs)
        return traces

    def repeated(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A model or a guide whose sites other than the precision are drawn M times."""
        return Repeated(self.draws)(fn)
