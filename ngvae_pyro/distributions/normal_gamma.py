r"""Distributions over the pair (z, precision) of a latent variable and its precision.

Every joint distribution here is ``p(precision) p(z | precision)``: a Gamma or a mixture of two
Gammas for the precision, and for z a Normal whose variance is either 1 / precision or fixed.

===============================  =====================  ===========================
class                            precision              z given precision
===============================  =====================  ===========================
:class:`NormalGamma`             Gamma                  Normal(loc, precision^-1/2)
:class:`NormalGammaMixture`      :class:`GammaMixture`  Normal(loc, precision^-1/2)
:class:`NormalGammaPrior`        :class:`GammaMixture`  Normal(0, precision^-1/2)
:class:`IndependentNormalGamma`  Gamma                  Normal(loc, scale)
:class:`SpikeSlabPrior`          :class:`GammaMixture`  Normal(0, 1)
===============================  =====================  ===========================

:class:`RelaxedNormalGammaMixture` is the :class:`NormalGamma` that stands in for the mixture
while gradients are needed, :class:`NormalGammaMarginal` is the z of the mixture without its
precision, and :class:`GeneralizedGamma` a Gamma with another gradient. A value holds z in
``value[..., 0]`` and the precision in ``value[..., 1]``. A Gamma's ``rate`` is in units of z
squared (its mean is concentration / rate).
All of them take ``validate_args`` as torch's distributions do; with its checks a small step costs
twice as much.
"""

import math
from collections.abc import Sequence
from functools import reduce
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import (
    Gamma,
    Independent,
    Normal,
    StudentT,
    TorchDistribution,
)
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import kl_divergence, register_kl
from torch.distributions.utils import lazy_property
from torch.types import _size

from ngvae_pyro.errors import UserError, expect

__all__ = [
    "GammaMixture",
    "GeneralizedGamma",
    "IndependentNormalGamma",
    "NormalGamma",
    "NormalGammaMarginal",
    "NormalGammaMixture",
    "NormalGammaPrior",
    "RelaxedNormalGammaMixture",
    "SpikeSlabPrior",
    "conditional_kl",
    "kl_bound",
    "kl_monte_carlo",
]

# A parameter, and a pair of them: two values, or one tensor with both on its last axis.
Value = float | Tensor
Pair = Tensor | tuple[Value, Value] | Sequence[Value]

# `independent` makes the check one boolean per event; `cat` alone gives one per coordinate.
_z_and_precision = constraints.independent(
    constraints.cat([constraints.real, constraints.positive], dim=-1), 1
)
_positive_pair = constraints.independent(constraints.positive, 1)
_prior_arguments = {
    "probs": constraints.unit_interval,
    "slab": _positive_pair,
    "spike": _positive_pair,
}


def _broadcast(*values: Value) -> tuple[Tensor, ...]:
    """Broadcast numbers and tensors to one shape and one floating-point type.

    The type is the one that torch promotes the tensors' types to, whatever their shapes, or the
    default type if that is not a floating-point one. Numbers take that type, and the device of the
    first tensor.
    """
    tensors = [v for v in values if isinstance(v, Tensor)]
    like = tensors[0] if tensors else torch.empty(())
    dtype = reduce(torch.promote_types, (v.dtype for v in tensors), like.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    # new_full rather than torch.tensor(number), which copies from the host: CUDA graphs cannot
    # record that.
    found: tuple[Tensor, ...] = torch.broadcast_tensors(
        *(
            v.to(dtype) if isinstance(v, Tensor) else like.new_full((), v, dtype=dtype)
            for v in values
        )
    )
    return found


def _pair(name: str, values: Pair) -> Sequence[Value]:
    """The two members of a pair, checked, because a number or a longer tuple is an easy slip.

    A tensor holds them on its last axis, as the attributes do.
    """
    if isinstance(values, Tensor) and values.dim() > 0:
        if values.shape[-1] != 2:
            shape = tuple(values.shape)
            raise ValueError(f"Expected {name} to be a pair on the last axis, got shape {shape}")
        return values.unbind(-1)
    if isinstance(values, (int, float, Tensor)) or len(values) != 2:
        raise ValueError(f"Expected {name} to be a pair, got {values}")
    return values


def _by_parameter(slab: Pair, spike: Pair) -> dict[str, Any]:
    """Two (concentration, rate) pairs as a pair of concentrations and a pair of rates."""
    names = ("(concentration, rate) of slab", "(concentration, rate) of spike")
    (a1, b1), (a2, b2) = map(_pair, names, (slab, spike))
    return {"concentration": (a1, a2), "rate": (b1, b2)}


def _either(probs: Value | None, logits: Value | None) -> tuple[str, Value]:
    """Whichever of probs and logits was given, with its name."""
    if probs is not None and logits is None:
        return "probs", probs
    if logits is not None and probs is None:
        return "logits", logits
    raise ValueError("Either `probs` or `logits` must be specified, but not both.")


def _mean_inverse(concentration: Tensor, rate: Tensor) -> Tensor:
    """E[1 / precision] under a Gamma: rate / (concentration - 1), infinite up to 1."""
    finite = concentration > 1
    # The inner `where` keeps the division, and so its gradient, finite on the other branch.
    excess = torch.where(finite, concentration - 1, 1.0)
    return torch.where(finite, rate / excess, math.inf)


def _tangent(parameter: Tensor) -> Tensor:
    """Zero, but with the gradient of the parameter, to be multiplied by an implicit derivative."""
    # The logits of probs 0 and 1 are infinite and have no gradient.
    parameter = torch.where(parameter.isfinite(), parameter, 0.0)
    return parameter - parameter.detach()


class _Gamma(Gamma):
    """Gamma distribution of a precision, accurate for large and for small concentrations.

    At concentration a the log density is a difference of terms of size a log a: in float32 the
    rounding error is a nat at a = 1e6, and the derivatives are as wrong. The log density, the
    entropy and the KL are therefore computed in float64; parameters, values and results keep their
    own type.

    A draw is at least 6.7e-16 in float32 and 1e-123 in float64, and has no gradient there. For
    smaller draws the derivative of loc + error / sqrt(precision), or of its square, overflows.
    """

    support = constraints.positive  # type: ignore[assignment]

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a, b, x = self.concentration.double(), self.rate.double(), value.double()
        # The terms in a and b alone are grouped: for a prior, recordings fold them to a constant.
        exact = (a * b.log() - a.lgamma()) + (a - 1) * x.log() - b * x
        return exact.to(torch.result_type(value, self.rate))

    def entropy(self) -> Tensor:
        a, b = self.concentration.double(), self.rate.double()
        return (a - b.log() + a.lgamma() + (1 - a) * a.digamma()).to(self.rate.dtype)

    # From 2.15 on, torch passes a generator too.
    def rsample(self, sample_shape: _size = (), **options: Any) -> Tensor:  # type: ignore[override]
        least = torch.finfo(self.rate.dtype).tiny ** 0.4
        return super().rsample(sample_shape, **options).clamp(min=least)


class _StudentT(StudentT):  # type: ignore[misc]
    """Student's t distribution in float64, as :class:`_Gamma` is: accurate for a large df."""

    @property
    def _in_double(self) -> torch.distributions.StudentT:
        parameters = (self.df.double(), self.loc.double(), self.scale.double())
        return torch.distributions.StudentT(*parameters, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        exact: Tensor = self._in_double.log_prob(value.double())
        return exact.to(torch.result_type(value, self.scale))

    def entropy(self) -> Tensor:
        exact: Tensor = self._in_double.entropy()
        return exact.to(self.scale.dtype)


class _Expandable(TorchDistribution):
    """A distribution whose ``expand`` expands the parameters and keeps the type."""

    # The parameters, by name as in `arg_constraints`, if they are not the arguments.
    _parameters: ClassVar[dict[str, constraints.Constraint] | None] = None

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> Self:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        batch_shape = torch.Size(batch_shape)
        for name, constraint in (self._parameters or self.arg_constraints).items():
            if name in self.__dict__:
                value = self.__dict__[name]
                event_shape = value.shape[value.dim() - constraint.event_dim :]
                setattr(new, name, value.expand(batch_shape + event_shape))
        if "has_rsample" in self.__dict__:
            # `has_rsample_` was called on this one; Pyro's plates cannot pass it to an Independent.
            new.has_rsample = self.has_rsample
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class _Weighted(_Expandable):
    """A distribution with a weight of component 1, kept as probs or logits, whichever was given."""

    @lazy_property
    def probs(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @lazy_property
    def logits(self) -> Tensor:
        # Unlike in torch's Bernoulli, probs of 0 and 1 are not clamped: they give exactly -inf and
        # inf. They pass on no gradient, because the logit's would be 0 * inf.
        inside = (self.probs > 0) & (self.probs < 1)
        ends = (self.probs.detach() - 0.5) * math.inf
        return torch.where(inside, torch.where(inside, self.probs, 0.5).logit(), ends)


class _TwoGammas(_Weighted):
    """Weights, concentrations and rates of two Gammas, stacked on a last axis of size 2."""

    def _set_components(
        self,
        probs: Value | None,
        logits: Value | None,
        concentration: Pair,
        rate: Pair,
        others: Sequence[Value] = (),
    ) -> tuple[torch.Size, list[Tensor]]:
        """Broadcast and store the parameters; the batch shape, and the others broadcast to it."""
        name, weight = _either(probs, logits)
        weight, a1, a2, b1, b2, *rest = _broadcast(
            weight, *_pair("concentration", concentration), *_pair("rate", rate), *others
        )
        setattr(self, name, weight)
        self.concentration = torch.stack((a1, a2), -1)
        self.rate = torch.stack((b1, b2), -1)
        return weight.shape, rest

    @lazy_property
    def _log_weights(self) -> Tensor:
        logsigmoid = torch.nn.functional.logsigmoid
        return torch.stack((logsigmoid(self.logits), logsigmoid(-self.logits)), -1)

    def _average(self, values: Tensor) -> Tensor:
        """Weighted mean over the components; one of weight 0 may be infinite or nan."""
        weights = self._log_weights.exp()
        present, finite = weights > 0, values.isfinite()
        total = weights * torch.where(present & finite, values, 0.0)
        # Infinite values pass on no gradient: it would be infinite or 0 * inf.
        return (total + torch.where(present & ~finite, values.detach(), 0.0)).sum(-1)


class GammaMixture(_TwoGammas):
    r"""Mixture of two Gamma distributions, on a positive scalar.

    .. math:: p \, \mathrm{Gamma}(\lambda; a_1, b_1) + (1 - p) \, \mathrm{Gamma}(\lambda; a_2, b_2)

    With probs = 1 it is exactly the Gamma of component 1, and with probs = 0 that of component 2.
    There the gradients with respect to the absent component and to probs are zero, so pass logits
    if the weight is to be learned. As a prior on a precision it is a spike and a slab.

    References:
        Wiper, Rios Insua, Ruggeri (2001), Mixtures of gamma distributions with applications,
        Journal of Computational and Graphical Statistics 10.

    Args:
        probs: Weight p of component 1, in [0, 1], of the batch's shape.
        logits: Its log odds; exactly one of the two.
        concentration: The pair (a1, a2), positive; each a number or broadcasting with probs. One
            tensor for both holds them on its last axis, as the attribute does.
        rate: The pair (b1, b2), positive, in units of 1 / value; likewise.

    Raises:
        ValueError: If both or neither of probs and logits are given, a parameter is not a pair or
            not positive, or a value is not positive.

    Example:
        >>> d = GammaMixture(0.25, concentration=(1000.0, 100.0), rate=(0.1, 100.0))
        >>> d.mean
        tensor(2500.7500)
        >>> d.responsibilities(torch.tensor([1.0, 1e4]))
        tensor([0., 1.])
    """

    arg_constraints: ClassVar = {
        "probs": constraints.unit_interval,
        "logits": constraints.real,
        "concentration": _positive_pair,
        "rate": _positive_pair,
    }
    support = constraints.positive

    def __init__(
        self,
        probs: Value | None = None,
        logits: Value | None = None,
        *,
        concentration: Pair,
        rate: Pair,
        validate_args: bool | None = None,
    ) -> None:
        batch_shape, _ = self._set_components(probs, logits, concentration, rate)
        super().__init__(batch_shape, validate_args=validate_args)

    @lazy_property
    def _components(self) -> _Gamma:
        return _Gamma(self.concentration, self.rate, validate_args=self._validate_args)

    def _log_joint(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_weights + self._components.log_prob(value.unsqueeze(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logaddexp(*self._log_joint(value).unbind(-1))

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of a draw of at most ``value``."""
        if self._validate_args:
            self._validate_sample(value)
        return self._average(self._components.cdf(value.unsqueeze(-1)))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            first = torch.bernoulli(self.probs.expand(self._extended_shape(sample_shape))) > 0
            a1, a2 = self.concentration.unbind(-1)
            b1, b2 = self.rate.unbind(-1)
            chosen = torch.where(first, a1, a2), torch.where(first, b1, b2)
            return _Gamma(*chosen, validate_args=False).sample()

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draws with the implicit gradient, for components that overlap.

        With F the distribution function and f the density, d value / dp = -(F1 - F2) / f, and the
        derivative with respect to a parameter of component c is that of its Gamma at the value,
        times its responsibility. Between components that hardly overlap f is all but 0, and the
        derivative of an average over both comes from draws that practically never occur: for
        Gamma(1000, 0.1) and Gamma(100, 100), 400,000 draws gave 0.69 for d E[log value] / dp,
        which is 9.21. For Gamma(5, 0.5) and Gamma(5, 5) it is right (2.302 +- 0.006 for 2.303).
        Therefore ``has_rsample`` is False unless it is enabled by ``has_rsample_(True)``.
        """
        value = self.sample(sample_shape)
        with torch.no_grad():
            unit = value.unsqueeze(-1) * self.rate
            density = self._components.log_prob(value.unsqueeze(-1)).exp()
            first, second = torch.special.gammainc(self.concentration, unit).unbind(-1)
            weights = self._log_weights.exp()
            total = (weights * density).sum(-1)
            by_logit = -weights.prod(-1) * (first - second) / total
            share = weights * density / total.unsqueeze(-1)
            by_concentration = share * torch._standard_gamma_grad(
                self.concentration.expand_as(unit).contiguous(), unit
            )
            by_concentration = by_concentration / self.rate
            by_rate = -share * value.unsqueeze(-1) / self.rate
        moved: Tensor = (
            value
            + by_logit * _tangent(self.logits)
            + (by_concentration * _tangent(self.concentration)).sum(-1)
            + (by_rate * _tangent(self.rate)).sum(-1)
        )
        return moved

    def responsibilities(self, value: Tensor) -> Tensor:
        """Posterior probability of component 1 given a value of the precision."""
        return self._log_joint(value).softmax(-1)[..., 0]

    @property
    def mean(self) -> Tensor:
        return self._average(self._components.mean)

    @property
    def variance(self) -> Tensor:
        spread = (self._components.mean - self.mean.unsqueeze(-1)).square()
        return self._average(self._components.variance + spread)


class _PartlyReparameterised(Independent):
    """``Independent`` that passes on the score of a base that is only partly reparameterised."""

    def score_parts(self, value: Tensor) -> ScoreParts:
        parts = self.base_dist.score_parts(value)
        count = self.reinterpreted_batch_ndims
        return ScoreParts(*(sum_rightmost(part, count) for part in parts))

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> Self:
        new: Self = super().expand(batch_shape, _instance=self._get_checked_instance(type(self)))
        return new


class GeneralizedGamma(_Gamma):
    r"""Gamma distribution with the generalized reparameterization gradient.

    A value is standardised in its logarithm, with psi the digamma function:

    .. math::
        \epsilon = \frac{\log \lambda - \psi(a) + \log b}{\sqrt{\psi'(a)}}, \qquad
        \lambda = h(\epsilon; a, b) = \exp(\epsilon \sqrt{\psi'(a)} + \psi(a) - \log b).

    The distribution of epsilon still depends on a, though weakly for a large a, so the gradient of
    E[f] has two terms,

    .. math::
        \nabla E[f(\lambda)] = E[f'(\lambda) \nabla h(\epsilon)]
        + E[f(\lambda) \nabla \log q(\epsilon; a)], \qquad
        q(\epsilon; a) = \mathrm{Gamma}(h(\epsilon); a, b) \, h(\epsilon) \sqrt{\psi'(a)},

    of which ``rsample`` gives the first and ``score_parts`` the second; Pyro's ELBOs add them. The
    sum is unbiased, ``rsample`` alone is not. This is the estimator of the NG-VAE's slides, kept
    for comparison: torch's implicit gradient (Figurnov et al., 2018) has no second term, and so
    none of the noise that f brings into it.

    References:
        Ruiz, Titsias, Blei (2016), The generalized reparameterization gradient,
        https://arxiv.org/abs/1610.02287.

    Args:
        concentration: Shape a, positive.
        rate: Rate b, positive.

    Raises:
        ValueError: If concentration, rate or a value is not positive.

    Example:
        >>> d = GeneralizedGamma(torch.tensor(2.0), torch.tensor(3.0))
        >>> d.score_parts(torch.tensor(1.0)).score_function  # log q(epsilon), up to a constant
        tensor(-1.0221)
    """

    def __init__(
        self, concentration: Value, rate: Value, validate_args: bool | None = None
    ) -> None:
        concentration, rate = _broadcast(concentration, rate)
        super().__init__(concentration, rate, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> Self:
        new: Self = super().expand(batch_shape, _instance=self._get_checked_instance(type(self)))
        return new

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Independent:
        count = reinterpreted_batch_ndims
        return _PartlyReparameterised(self, len(self.batch_shape) if count is None else count)

    def rsample(self, sample_shape: _size = (), **options: Any) -> Tensor:  # type: ignore[override]
        log_value = super().rsample(sample_shape, **options).detach().log()
        a, loc = self.concentration, self.concentration.digamma() - self.rate.log()
        scale = torch.special.polygamma(1, a).sqrt()
        epsilon = ((log_value - loc) / scale).detach()
        value: Tensor = (epsilon * scale + loc).exp()
        return value

    def score_parts(self, value: Tensor) -> ScoreParts:
        log_prob = self.log_prob(value)
        scale = torch.special.polygamma(1, self.concentration).sqrt()
        return ScoreParts(log_prob, log_prob + value.log() + scale.log(), log_prob)


class _Pair(_Expandable):
    """p(precision) p(z | precision): subclasses define ``conditional`` and the moments of z."""

    support = _z_and_precision
    loc: Tensor
    concentration: Tensor
    rate: Tensor

    @lazy_property
    def precision(self) -> TorchDistribution:
        """Gamma distribution of the precision."""
        return _Gamma(self.concentration, self.rate, validate_args=self._validate_args)

    def conditional(self, precision: Tensor) -> Normal:
        """Normal distribution of z given the precision."""
        raise NotImplementedError

    @property
    def _z_mean(self) -> Tensor:
        raise NotImplementedError

    @property
    def _z_variance(self) -> Tensor:
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z, precision = value.unbind(-1)
        log_p: Tensor = self.precision.log_prob(precision)
        log_p = log_p + self.conditional(precision).log_prob(z)
        return log_p

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            precision = self.precision.sample(sample_shape)
            return torch.stack((self.conditional(precision).sample(), precision), -1)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        precision = self.precision.rsample(sample_shape)
        return torch.stack((self.conditional(precision).rsample(), precision), -1)

    @property
    def mean(self) -> Tensor:
        return torch.stack((self._z_mean, self.precision.mean), -1)

    @property
    def variance(self) -> Tensor:
        return torch.stack((self._z_variance, self.precision.variance), -1)


class _MixturePair(_TwoGammas, _Pair):
    """Pairs whose precision is a mixture of two Gammas."""

    @property
    def slab(self) -> Tensor:
        """Concentration and rate of component 1, on a last axis of size 2."""
        return torch.stack((self.concentration[..., 0], self.rate[..., 0]), -1)

    @property
    def spike(self) -> Tensor:
        """Concentration and rate of component 2, on a last axis of size 2."""
        return torch.stack((self.concentration[..., 1], self.rate[..., 1]), -1)

    @lazy_property
    def precision(self) -> GammaMixture:
        """Mixture of two Gammas, the distribution of the precision."""
        return GammaMixture(
            logits=self.logits,
            concentration=self.concentration.unbind(-1),
            rate=self.rate.unbind(-1),
            validate_args=self._validate_args,
        )

    def responsibilities(self, value: Tensor) -> Tensor:
        """Posterior probability of component 1 given z and the precision."""
        if self._validate_args:
            self._validate_sample(value)
        return self.precision.responsibilities(value[..., 1])


class _ScaledPair(_Pair):
    """Pairs whose z has the precision drawn with it."""

    def conditional(self, precision: Tensor) -> Normal:
        """Normal distribution of z given the precision: Normal(loc, precision^-1/2)."""
        # Not rsqrt: for a precision of 1e-24 its derivative cubes 1e12.
        scale = precision.sqrt().reciprocal()
        return Normal(self.loc, scale, validate_args=self._validate_args)


class _IndependentPair(_Pair):
    """Pairs whose z is independent of the precision."""

    scale: Tensor

    def conditional(self, precision: Tensor) -> Normal:
        """Normal distribution of z given the precision, which is the same for all precisions."""
        shape = torch.broadcast_shapes(self.batch_shape, precision.shape)
        expanded: Normal = self.marginal.expand(shape)
        return expanded

    @property
    def marginal(self) -> Normal:
        """Normal distribution of z."""
        return Normal(self.loc, self.scale, validate_args=self._validate_args)

    @property
    def _z_mean(self) -> Tensor:
        return self.loc

    @property
    def _z_variance(self) -> Tensor:
        return self.scale.square()


class NormalGamma(_ScaledPair):
    r"""Normal-Gamma distribution of z and its precision.

    .. math::
        p(z, \lambda) = \mathrm{Normal}(z; \mu, \lambda^{-1/2}) \, \mathrm{Gamma}(\lambda; a, b)

    (the second argument of the Normal is its scale, not its variance). Samples are reparameterised:
    z through the Normal, the precision through the Gamma's implicit gradient. The marginal of z is
    Student's t with 2a degrees of freedom, so its mean exists for a > 1/2 (else nan) and its
    variance b / (a - 1) for a > 1 (else inf, and nan up to 1/2), as in torch's StudentT. Densities
    and KLs are computed in float64 where float32 would lose them, and are exact to some 1e-6 for
    concentrations from 0.01 to 1e6. A draw of the precision is at least 6.7e-16 in float32 and
    1e-123 in float64: in float32 that moves 3 % of the draws of a Gamma with concentration 0.1 and
    rate 1, and one draw in 1e15 at a concentration of 1.

    References:
        Bernardo, Smith (1994), Bayesian Theory, Wiley.
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients,
        https://arxiv.org/abs/1805.08498.

    Args:
        loc: Mean mu of z, real, in units of z.
        concentration: Shape a of the Gamma, positive, without unit.
        rate: Rate b of the Gamma, positive, in units of z squared. All three broadcast.

    Raises:
        ValueError: If concentration, rate or the precision in a value is not positive.

    Example:
        >>> d = NormalGamma(loc=torch.zeros(3), concentration=100.0, rate=100.0)
        >>> d.batch_shape, d.event_shape
        (torch.Size([3]), torch.Size([2]))
        >>> NormalGamma(2.0, 3.0, 4.0).variance  # of z and of the precision
        tensor([2.0000, 0.1875])
        >>> NormalGamma(2.0, 3.0, 4.0).log_prob(torch.tensor([2.0, 1.0]))
        tensor(-1.4532)
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self, loc: Value, concentration: Value, rate: Value, *, validate_args: bool | None = None
    ) -> None:
        self.loc, self.concentration, self.rate = _broadcast(loc, concentration, rate)
        super().__init__(self.loc.shape, torch.Size((2,)), validate_args=validate_args)

    @property
    def marginal(self) -> _StudentT:
        """Student's t distribution of z: 2a degrees of freedom, loc, scale sqrt(b / a)."""
        scale = (self.rate / self.concentration).sqrt()
        return _StudentT(2 * self.concentration, self.loc, scale, validate_args=self._validate_args)

    @property
    def _z_mean(self) -> Tensor:
        return torch.where(self.concentration > 0.5, self.loc, math.nan)

    @property
    def _z_variance(self) -> Tensor:
        variance = _mean_inverse(self.concentration, self.rate)
        return torch.where(self.concentration > 0.5, variance, math.nan)

    @property
    def _mean_log_precision(self) -> Tensor:
        return self.concentration.digamma() - self.rate.log()

    def entropy(self) -> Tensor:
        """Entropy in nats: the Gamma's plus the mean entropy of z given the precision."""
        normal = 0.5 * (1 + math.log(2 * math.pi) - self._mean_log_precision)
        return self.precision.entropy() + normal


class NormalGammaMixture(_MixturePair, _ScaledPair):
    r"""Mixture of two Normal-Gamma distributions of z and its precision with one shared loc.

    .. math::
        p \, \mathrm{NormalGamma}(z, \lambda; \mu, a_1, b_1)
        + (1 - p) \, \mathrm{NormalGamma}(z, \lambda; \mu, a_2, b_2)

    Component 1 is the informative one: with a high precision, z carries information. Because loc
    is shared, this is a :class:`GammaMixture` of the precision followed by a single Normal, and
    given the precision z says nothing more about the component. Sampling is exact and not
    reparameterised.

    References:
        Jouffroy, Giremus, Berthoumieu, Bach (2022), Automatic selection of latent variables in
        Variational Auto-Encoders, AI and physics conference.

    Args:
        loc: Mean mu of z, real, in units of z.
        probs: Weight p of component 1, in [0, 1]; 0 and 1 are exact.
        logits: Its log odds; exactly one of the two.
        concentration: The pair (a1, a2), positive; each a number or broadcasting with loc. One
            tensor for both holds them on its last axis, as the attribute does.
        rate: The pair (b1, b2), positive, in units of z squared; likewise.

    Raises:
        ValueError: If both or neither of probs and logits are given, a parameter is not a pair or
            not positive, or the precision in a value is not positive.

    Example:
        >>> d = NormalGammaMixture(0.0, probs=0.5, concentration=(1000.0, 100.0), rate=(0.1, 100.0))
        >>> d.mean
        tensor([   0.0000, 5000.5000])
        >>> d.responsibilities(torch.tensor([[0.0, 9000.0], [0.0, 1.1]]))
        tensor([1., 0.])
    """

    arg_constraints: ClassVar = {"loc": constraints.real, **GammaMixture.arg_constraints}

    def __init__(
        self,
        loc: Value,
        probs: Value | None = None,
        logits: Value | None = None,
        *,
        concentration: Pair,
        rate: Pair,
        validate_args: bool | None = None,
    ) -> None:
        shape, (self.loc,) = self._set_components(probs, logits, concentration, rate, (loc,))
        super().__init__(shape, torch.Size((2,)), validate_args=validate_args)

    @lazy_property
    def marginal(self) -> "NormalGammaMarginal":
        """Mixture of two Student's t distributions of z, with the precision integrated out."""
        return NormalGammaMarginal(self, validate_args=self._validate_args)

    def precision_given(self, z: Tensor) -> GammaMixture:
        """Posterior of the precision given a value of z, a :class:`GammaMixture`.

        Component c becomes Gamma(a_c + 1/2, b_c + (z - mu)^2 / 2), and its weight is its share of
        the density of z.
        """
        concentration, rate = self.concentration + 0.5, self.rate
        rate = rate + 0.5 * (z - self.loc).square().unsqueeze(-1)
        first, second = self.marginal._log_joint(z).unbind(-1)
        return GammaMixture(
            logits=first - second,
            concentration=concentration.unbind(-1),
            rate=rate.unbind(-1),
            validate_args=self._validate_args,
        )

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draws of z from :attr:`marginal` and of the precision given z, both with gradients.

        Unbiased for functions of z alone; for functions of the precision, like
        :meth:`GammaMixture.rsample`, only where the components overlap given z. Therefore
        ``has_rsample`` is False unless it is enabled by ``has_rsample_(True)``.
        """
        z = self.marginal.rsample(sample_shape)
        return torch.stack((z, self.precision_given(z).rsample()), -1)

    @property
    def _mean_log_precision(self) -> Tensor:
        return self._average(self.concentration.digamma() - self.rate.log())

    @property
    def _z_mean(self) -> Tensor:
        exists = ((self.concentration > 0.5) | self._log_weights.isneginf()).all(-1)
        return torch.where(exists, self.loc, math.nan)

    @property
    def _z_variance(self) -> Tensor:
        variance = self._average(_mean_inverse(self.concentration, self.rate))
        return torch.where(self._z_mean.isnan(), math.nan, variance)


class NormalGammaMarginal(TorchDistribution):
    r"""Distribution of z under a :class:`NormalGammaMixture`, with an unbiased gradient for p.

    .. math::
        p \, \mathrm{StudentT}(z; 2 a_1, \mu, \sqrt{b_1 / a_1})
        + (1 - p) \, \mathrm{StudentT}(z; 2 a_2, \mu, \sqrt{b_2 / a_2})

    However far apart the precisions of the two components are, their z overlap, because they share
    loc; so the implicit gradient, which fails for the precision (:meth:`GammaMixture.rsample`),
    works for z. A draw takes one precision from each component, independently of p, and then z
    from the resulting mixture of two Normals. With e = z - mu, the Normals' distribution functions
    Phi_c, their weighted densities f_1 + f_2 = f and shares r_c = f_c / f,

    .. math::
        \frac{\partial z}{\partial p} = -\frac{\Phi_1 - \Phi_2}{f}, \qquad
        \frac{\partial z}{\partial \mu} = 1, \qquad
        \frac{\partial z}{\partial \lambda_c} = -\frac{r_c e}{2 \lambda_c},

    and the precisions have the Gamma's own implicit gradient. The derivative with respect to the
    logit of p is at most sqrt(pi / 2) times the standard deviation of the wider Normal, even as p
    approaches 0 or 1.

    References:
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients,
        https://arxiv.org/abs/1805.08498.

    Args:
        joint: The :class:`NormalGammaMixture`.

    Example:
        >>> logits = torch.zeros((), requires_grad=True)
        >>> d = NormalGammaMixture(
        ...     0.0, logits=logits, concentration=(1000.0, 100.0), rate=(0.1, 100.0)
        ... ).marginal
        >>> d.rsample((100_000,)).square().mean().backward()
        >>> round(logits.grad.item(), 2)  # exact: (0.0001 - 1.0101) / 4
        -0.25
    """

    arg_constraints: ClassVar = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, joint: NormalGammaMixture, *, validate_args: bool | None = None) -> None:
        self.joint = joint
        super().__init__(joint.batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> "NormalGammaMarginal":
        return NormalGammaMarginal(
            self.joint.expand(batch_shape), validate_args=self._validate_args
        )

    def _log_joint(self, value: Tensor) -> Tensor:
        joint = self.joint
        components = NormalGamma(
            joint.loc.unsqueeze(-1), joint.concentration, joint.rate, validate_args=False
        )
        return joint._log_weights + components.marginal.log_prob(value.unsqueeze(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_joint(value).logsumexp(-1)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self.joint.sample(sample_shape)[..., 0]

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        joint, shape = self.joint, self._extended_shape(sample_shape)
        precision = _Gamma(joint.concentration, joint.rate, validate_args=False).rsample(
            sample_shape
        )
        with torch.no_grad():
            first = torch.bernoulli(joint.probs.expand(shape)) > 0
            chosen = torch.where(first, precision[..., 0], precision[..., 1])
            error = torch.randn_like(chosen) * chosen.rsqrt()
            root = precision.sqrt()
            scaled = root * error.unsqueeze(-1)
            weights = joint._log_weights.exp()
            density = weights * root * (-0.5 * scaled.square()).exp() / math.sqrt(2 * math.pi)
            total = density.sum(-1)
            # From the upper tails, because 1 - Phi would round to 0.
            tail = 0.5 * torch.erfc(scaled.abs() / math.sqrt(2))
            by_logit = weights.prod(-1) * error.sign() * (tail[..., 0] - tail[..., 1]) / total
            by_precision = -0.5 * density / total.unsqueeze(-1) * error.unsqueeze(-1) / precision
        return (
            joint.loc
            + error
            + by_logit * _tangent(joint.logits)
            + (by_precision * _tangent(precision)).sum(-1)
        )

    @property
    def mean(self) -> Tensor:
        return self.joint._z_mean

    @property
    def variance(self) -> Tensor:
        return self.joint._z_variance


class RelaxedNormalGammaMixture(_Weighted, NormalGamma):
    r"""Normal-Gamma distribution whose Gamma moves from component 2 to component 1 as p rises.

    .. math::
        \mathrm{NormalGamma}(\mu, \alpha(p), \beta(p)), \qquad
        \alpha(p) = a_2 + (a_1 - a_2) \, \sigma(r (p - 1/2)), \qquad
        \beta(p) = b_2 + (b_1 - b_2) \, \sigma(r (p - 1/2))

    It replaces :class:`NormalGammaMixture` where p needs a pathwise gradient. The slides write
    the formula with the components exchanged, so that it tends to component 2 as p goes to 1,
    although p is the weight of component 1 in their mixture; here p stands for their 1 - p.

    With a finite sharpness r the components are not reached: a share sigma(-r/2) of the other one
    remains. For (a1, b1) = (1000, 0.1) and (a2, b2) = (100, 100), with precisions 10,000 and 1,
    r = 10 leaves 0.0067 and mean precisions of 1293 at p = 1 and 1.067 at p = 0; r = 20 leaves
    0.000045, and 9566 and 1.0005. As r grows, p = 0 and p = 1 give the exact mixture.

    References:
        Jouffroy, Giremus, Berthoumieu, Bach (2022), Automatic selection of latent variables in
        Variational Auto-Encoders, AI and physics conference.

    Args:
        loc: Mean mu of z, real, in units of z.
        probs: Weight p, in [0, 1].
        logits: Its log odds; exactly one of the two.
        concentration: The pair (a1, a2), positive; each a number or broadcasting with loc. One
            tensor is alpha(p) itself, which the attribute holds.
        rate: The pair (b1, b2), positive, in units of z squared. One tensor is beta(p) itself,
            which the attribute holds.
        sharpness: Slope r, positive; a number, or a tensor such as an annealed buffer.

    Raises:
        ValueError: If both or neither of probs and logits are given, a parameter is not a pair or
            not positive, or the precision in a value is not positive.

    Example:
        >>> d = RelaxedNormalGammaMixture(
        ...     0.0, torch.tensor([0.0, 1.0]),
        ...     concentration=(1000.0, 100.0), rate=(0.1, 100.0), sharpness=10.0,
        ... )
        >>> d.precision.mean
        tensor([1.0674e+00, 1.2932e+03])
        >>> isinstance(d, NormalGamma)  # so the closed KLs hold
        True
    """

    arg_constraints: ClassVar = {
        **NormalGamma.arg_constraints,
        "probs": constraints.unit_interval,
        "logits": constraints.real,
        "sharpness": constraints.positive,
    }

    def __init__(
        self,
        loc: Value,
        probs: Value | None = None,
        logits: Value | None = None,
        *,
        concentration: Pair,
        rate: Pair,
        sharpness: Value,
        validate_args: bool | None = None,
    ) -> None:
        name, weight = _either(probs, logits)
        ends = {"concentration": concentration, "rate": rate}
        ends = {n: v if isinstance(v, Tensor) else _pair(n, v) for n, v in ends.items()}
        members = [m for v in ends.values() for m in ((v,) if isinstance(v, Tensor) else v)]
        tensors = [m for m in members if isinstance(m, Tensor)]
        loc, weight, self.sharpness, *_ = _broadcast(loc, weight, sharpness, *tensors)
        setattr(self, name, weight)
        # In float64: a sharpness of 1000 magnifies the float32 rounding of p - 1/2 to 0.0001.
        exact = weight.double().sigmoid() if name == "logits" else weight.double()
        shift = self.sharpness.double() * (exact - 0.5)
        gate, rest = torch.sigmoid(shift), torch.sigmoid(-shift)
        # A convex combination, not b2 + (b1 - b2) * gate: in float32 the latter returns 0.09999847
        # for b1 = 0.1, b2 = 100, and may round to a negative rate for smaller b1.
        slid = (v if isinstance(v, Tensor) else v[0] * gate + v[1] * rest for v in ends.values())
        super().__init__(loc, *(v.to(loc.dtype) for v in slid), validate_args=validate_args)


class NormalGammaPrior(NormalGammaMixture):
    r"""The joint prior, in which z has the precision that is drawn with it.

    .. math::
        p(z, \lambda) = \mathrm{Normal}(z; 0, \lambda^{-1/2}) \,
        [\pi \, \mathrm{Gamma}(\lambda; \mathrm{slab})
        + (1 - \pi) \, \mathrm{Gamma}(\lambda; \mathrm{spike})]

    It is a :class:`NormalGammaMixture` with loc 0. With a single Gamma it would be
    ``NormalGamma(0, concentration, rate)``, to which the KL has a closed form.

    References:
        Jouffroy, Giremus, Berthoumieu, Bach (2022), Automatic selection of latent variables in
        Variational Auto-Encoders, AI and physics conference.

    Args:
        probs: Weight pi of the slab, in [0, 1].
        slab: The pair (concentration, rate) of the Gamma of informative latents; as one tensor, on
            its last axis.
        spike: The pair (concentration, rate) of the Gamma of uninformative latents; likewise.

    Raises:
        ValueError: As for :class:`NormalGammaMixture`.

    Example:
        >>> prior = NormalGammaPrior(0.02, slab=(2.0, 1e-3), spike=(100.0, 100.0))
        >>> prior.conditional(torch.tensor(4.0)).scale
        tensor(0.5000)
    """

    arg_constraints: ClassVar = _prior_arguments
    _parameters = NormalGammaMixture.arg_constraints

    def __init__(
        self, probs: Value, slab: Pair, spike: Pair, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(0.0, probs, **_by_parameter(slab, spike), validate_args=validate_args)


class IndependentNormalGamma(_IndependentPair):
    r"""A Normal distribution of z and, independently, a Gamma distribution of the precision.

    .. math:: p(z, \lambda) = \mathrm{Normal}(z; m, s) \, \mathrm{Gamma}(\lambda; a, b)

    This is :class:`SpikeSlabPrior` with a single Gamma: the KL from a :class:`NormalGamma` has a
    closed form.

    References:
        Jouffroy, Giremus, Berthoumieu, Bach (2022), Inducing selective posterior-collapse in
        variational autoencoders by modelling the latent space as a mixture of normal-gamma
        distributions, AI and physics conference (the prior p(z) p(lambda) of its ELBO).

    Args:
        concentration: Shape a of the Gamma, positive.
        rate: Rate b of the Gamma, positive, in units of 1 / precision.
        loc: Mean m of z, real.
        scale: Standard deviation s of z, positive. All four broadcast.

    Raises:
        ValueError: If concentration, rate, scale or the precision in a value is not positive.

    Example:
        >>> prior = IndependentNormalGamma(100.0, 100.0)
        >>> prior.variance
        tensor([1.0000, 0.0100])
        >>> kl_divergence(NormalGamma(2.0, 100.0, 100.0), prior)
        tensor(2.0025)
    """

    arg_constraints: ClassVar = {**NormalGamma.arg_constraints, "scale": constraints.positive}
    has_rsample = True

    def __init__(
        self,
        concentration: Value,
        rate: Value,
        loc: Value = 0.0,
        scale: Value = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration, self.rate, self.loc, self.scale = _broadcast(
            concentration, rate, loc, scale
        )
        super().__init__(self.loc.shape, torch.Size((2,)), validate_args=validate_args)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        total: Tensor = self.precision.entropy() + self.marginal.entropy()
        return total


class SpikeSlabPrior(_MixturePair, _IndependentPair):
    r"""Prior with a standard Normal z and, independently, a spike and slab on the precision.

    .. math::
        p(z, \lambda) = \mathrm{Normal}(z; 0, 1) \,
        [\pi \, \mathrm{Gamma}(\lambda; \mathrm{slab})
        + (1 - \pi) \, \mathrm{Gamma}(\lambda; \mathrm{spike})]

    A narrow spike at precision 1 lets an uninformative latent equal its prior; the slab is broad.
    The logarithm of 1 / pi is the price of one informative latent in nats (up to 87 in float32).

    References:
        Mitchell, Beauchamp (1988), Bayesian variable selection in linear regression, JASA 83.
        Jouffroy, Giremus, Berthoumieu, Bach (2022), Inducing selective posterior-collapse in
        variational autoencoders by modelling the latent space as a mixture of normal-gamma
        distributions, AI and physics conference (the prior p(z) p(lambda) of its ELBO).

    Args:
        probs: Weight pi of the slab, in [0, 1].
        slab: The pair (concentration, rate) of the Gamma of informative latents; as one tensor, on
            its last axis.
        spike: The pair (concentration, rate) of the Gamma of uninformative latents; likewise.

    Raises:
        ValueError: If probs is outside [0, 1], a parameter is not a pair or not positive, or the
            precision in a value is not positive.

    Example:
        >>> price = 4.0
        >>> prior = SpikeSlabPrior(math.exp(-price), slab=(1.0, 1e-4), spike=(100.0, 100.0))
        >>> prior.log_prob(torch.tensor([[0.0, 1.0], [0.0, 5000.0]]))
        tensor([  0.4454, -14.6293])
    """

    arg_constraints: ClassVar = _prior_arguments
    _parameters: ClassVar = {**NormalGammaMixture.arg_constraints, "scale": constraints.positive}

    def __init__(
        self, probs: Value, slab: Pair, spike: Pair, *, validate_args: bool | None = None
    ) -> None:
        pairs = _by_parameter(slab, spike)
        shape, others = self._set_components(probs, None, **pairs, others=(0.0, 1.0))
        self.loc, self.scale = others
        super().__init__(shape, torch.Size((2,)), validate_args=validate_args)


def conditional_kl(
    p: NormalGamma | NormalGammaMixture, q: _ScaledPair | _IndependentPair
) -> Tensor:
    r"""KL of z given the precision, averaged over the precision of p, in nats.

    .. math:: \mathbb{E}_{p(\lambda)} \mathrm{KL}[p(z \mid \lambda) \,\|\, q(z \mid \lambda)]

    It has a closed form for every q here, even for mixtures, whose remaining term
    KL[p(precision) || q(precision)] has none. With an independent z ~ Normal(m, s) in q it is, for
    a > 1 and otherwise infinite,

    .. math::
        \tfrac12 \left(\frac{(\mu - m)^2 + b / (a - 1)}{s^2} - 1 + \log s^2
        + \psi(a) - \log b\right)

    and with the precision shared by z it is (mu - m)^2 a / (2 b).

    The gradient of an infinite KL is that of its finite part, and not nan.

    References:
        Penny (2001), KL-divergences of Normal, Gamma, Dirichlet and Wishart densities.

    Args:
        p: A :class:`NormalGamma` or a :class:`NormalGammaMixture`.
        q: Any pair distribution of this module. Their batch shapes broadcast.

    Raises:
        NotImplementedError: If p or q is another distribution.

    Example:
        >>> prior = SpikeSlabPrior(0.02, slab=(1.0, 1e-4), spike=(100.0, 100.0))
        >>> conditional_kl(NormalGamma(2.0, 100.0, 100.0), prior)
        tensor(2.0025)
    """
    known = isinstance(p, NormalGamma | NormalGammaMixture)
    if not (known and isinstance(q, _ScaledPair | _IndependentPair)):
        raise NotImplementedError(
            f"Expected a NormalGamma or NormalGammaMixture and a distribution of (z, precision), "
            f"got {type(p).__name__} and {type(q).__name__}"
        )
    distance = (p.loc - q.loc).square()
    if isinstance(q, _ScaledPair):
        return 0.5 * distance * p.precision.mean
    variance = q.scale.square()
    # Like every mean over the precision, the formula above is linear in the mixture's weights.
    mean_inverse, mean_log = _mean_inverse(p.concentration, p.rate), p._mean_log_precision
    if isinstance(p, NormalGammaMixture):
        mean_inverse = p._average(mean_inverse)
    return 0.5 * ((distance + mean_inverse) / variance - 1 + variance.log() + mean_log)


def _mixtures_of_gammas(
    name: str,
    p: Distribution,
    q: Distribution,
    others: tuple[type[Distribution], ...] | None = None,
) -> None:
    """Refuse distributions that the KL ``name`` is not defined for."""
    if isinstance(p, GammaMixture) and isinstance(q, others or GammaMixture):
        return
    found = f"{type(p).__name__} and {type(q).__name__}"
    pairs = any(isinstance(d, _ScaledPair | _IndependentPair) for d in (p, q))
    hint = f"; of a pair pass its precision: {name}(p.precision, q.precision)" if pairs else ""
    expected = "two GammaMixture" if others is None else "a GammaMixture, and one or a Gamma"
    raise UserError(f"{name}: expected {expected}, got {found}{hint}")


def kl_bound(p: GammaMixture, q: GammaMixture) -> Tensor:
    r"""Upper bound of the KL between two mixtures of Gammas, by the chain rule, in nats.

    .. math::
        \mathrm{KL}[p(\lambda) \,\|\, q(\lambda)]
        \le \mathrm{KL}[p(c, \lambda) \,\|\, q(c, \lambda)]
        = \mathrm{KL}[p(c) \,\|\, q(c)] + \sum_c p(c)\,
        \mathrm{KL}[p(\lambda \mid c) \,\|\, q(\lambda \mid c)],

    where c is the component: the first of p is paired with the first of q, the second with the
    second. It has a closed form and exceeds the KL by the mean over p of
    KL[p(c | lambda) || q(c | lambda)]. That is zero where the precision determines the component
    under both, as it does with separated components; for Gamma(1000, 0.1) and Gamma(100, 100)
    under the default prior the difference is below 1e-3 nats. An ELBO with this bound in place of
    the KL is still a lower bound of the evidence: it is the ELBO of the model in which c is a
    latent variable too.

    References:
        Hershey, Olsen (2007), Approximating the Kullback Leibler divergence between Gaussian
        mixture models, ICASSP (the chain rule as an upper bound).

    Args:
        p: A :class:`GammaMixture`.
        q: Another one. Their batch shapes broadcast.

    Raises:
        UserError: If p or q is another distribution, such as a pair whose ``precision`` is meant.

    Example:
        >>> gammas = {"concentration": (1000.0, 100.0), "rate": (0.1, 100.0)}
        >>> prior = GammaMixture(0.02, concentration=(1.0, 100.0), rate=(1e-4, 100.0))
        >>> kl_bound(GammaMixture(torch.tensor([0.0, 0.5, 1.0]), **gammas), prior)
        tensor([0.0202, 2.7906, 6.9473])
    """
    _mixtures_of_gammas("kl_bound", p, q)
    first, second = p._log_weights.unbind(-1)
    prior_first, prior_second = q._log_weights.unbind(-1)
    labels = torch.stack((first - prior_first, second - prior_second), -1)
    return p._average(labels + kl_divergence(p._components, q._components))


def kl_monte_carlo(
    p: GammaMixture, q: GammaMixture | torch.distributions.Gamma, draws: int = 1
) -> Tensor:
    r"""KL between two mixtures of Gammas by Monte Carlo, in nats.

    .. math::
        \sum_c p(c) \frac1S \sum_s \log \frac{p(\lambda_{cs})}{q(\lambda_{cs})}, \qquad
        \lambda_{cs} \sim p(\lambda \mid c)

    Each component is sampled separately and weighted by its probability, so the value and its
    gradient with respect to every parameter of p, the weights included, are unbiased, whether or
    not the components overlap. :func:`kl_bound` has no noise; this estimator has no bias.

    References:
        Morningstar, Vikram, Ham, Gallagher, Dillon (2021), Automatic differentiation variational
        inference with mixtures, https://arxiv.org/abs/2003.01687 (stratified sampling).

    Args:
        p: A :class:`GammaMixture`.
        q: Another one, or a Gamma. Their batch shapes broadcast.
        draws: Number S of draws from each component.

    Raises:
        UserError: If p is another distribution, q is not a distribution of a precision, or draws
            is not a whole number of at least 1.
    """
    _mixtures_of_gammas("kl_monte_carlo", p, q, (GammaMixture, torch.distributions.Gamma))
    expect("draws", draws, Integral, "a whole number")
    if draws < 1:
        raise UserError(f"draws: expected at least 1, got {draws}")
    value = p._components.rsample((draws,))
    # The components are on the last axis, which log_prob would take for the batch.
    value = value.movedim(-1, 0)
    ratio = (p.log_prob(value) - q.log_prob(value)).mean(1).movedim(0, -1)
    return p._average(ratio)


@register_kl(_Gamma, _Gamma)
@register_kl(_Gamma, torch.distributions.Gamma)
@register_kl(torch.distributions.Gamma, _Gamma)
def _kl_gamma(p: torch.distributions.Gamma, q: torch.distributions.Gamma) -> Tensor:
    exact = (torch.distributions.Gamma(d.concentration.double(), d.rate.double()) for d in (p, q))
    return kl_divergence(*exact).to(torch.result_type(p.rate, q.rate))


@register_kl(NormalGamma, NormalGamma)
@register_kl(NormalGamma, IndependentNormalGamma)
def _kl_normal_gamma(p: NormalGamma, q: NormalGamma | IndependentNormalGamma) -> Tensor:
    return kl_divergence(p.precision, q.precision) + conditional_kl(p, q)
