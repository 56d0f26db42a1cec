"""Posteriors of one latent z: a kernel with bounded support, and a mixture of Normals."""

import math
from typing import ClassVar, Self

import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.types import _size

from ngvae_pyro.distributions.normal_gamma import Value, _broadcast, _Expandable

__all__ = ["Epanechnikov", "GaussianMixture"]


class Epanechnikov(_Expandable):
    r"""Epanechnikov kernel around loc, a parabola of half-width scale that is 0 outside.

    .. math::
        p(z) = \frac{3}{4 s} \left(1 - u^2\right), \qquad u = \frac{z - m}{s} \in [-1, 1]

    The mean is m, the variance s^2 / 5 and the entropy 5/3 - log 3 + log s nats. A draw is m + s u,
    with u the median of three uniforms on [-1, 1]; this is exact, because their median has the
    density 6 F (1 - F) f.

    The KL to a Normal has a closed form, so an ELBO with this posterior is the ELBO itself. Qin and
    Huang maximise another bound, in which the KL is replaced by an upper bound that they derive for
    a kernel density estimate of the posterior, and that is tightest for this kernel; here it is a
    posterior like any other. The smallest KL to Normal(0, 1), at s^2 = 5, is 0.046 nats and not 0.

    References:
        Qin, Huang (2024), Epanechnikov variational autoencoder, https://arxiv.org/abs/2405.12783.
        Devroye (1986), Non-uniform random variate generation, Springer.

    Args:
        loc: Mean m, real, in units of z.
        scale: Half-width s of the support, positive, in units of z; the standard deviation is
            s / sqrt(5). Both broadcast.

    Raises:
        ValueError: If scale is not positive, or a value is outside [loc - scale, loc + scale].
            Without validation the log density is -inf there.

    Example:
        >>> d = Epanechnikov(torch.tensor([0.0, 1.0]), 2.0)
        >>> d.log_prob(torch.tensor([0.0, 2.0]))
        tensor([-0.9808, -1.2685])
        >>> d.variance
        tensor([0.8000, 0.8000])
        >>> Epanechnikov(0.0, 1.0).icdf(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-1.,  0.,  1.])
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = True

    def __init__(self, loc: Value, scale: Value, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = _broadcast(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.loc - self.scale, self.loc + self.scale)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # The same comparison as the support's: rounding can move a draw near the edge onto it, or
        # beyond.
        inside = (value >= self.loc - self.scale) & (value <= self.loc + self.scale)
        below, above, scale = self._distances(value)
        log_density = math.log(0.75) + below.log() + above.log() - 3 * scale.log()
        exact = torch.where(inside, log_density, -math.inf)
        return exact.to(torch.result_type(value, self.scale))

    def _distances(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances of a value to the lower and upper edge of the support, and scale, in float64.

        Near an edge, where the density goes to 0, the float32 rounding error is as large as the
        distance itself. On the edge and beyond, distances are clamped to a small positive one,
        which keeps the logarithm and its gradient finite.
        """
        loc, scale = self.loc.double(), self.scale.double()
        offset, least = value.double() - loc, torch.finfo(torch.float64).eps * scale.detach()
        return (scale + offset).clamp(min=least), (scale - offset).clamp(min=least), scale

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        # uniform_ draws from [-1, 1): to be at the lower edge takes two draws of -1 out of three.
        a, b, c = self.loc.new_empty((3, *shape)).uniform_(-1, 1).unbind(0)
        u = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
        return self.loc + self.scale * u

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of a draw of at most ``value``: (1 + u)^2 (2 - u) / 4."""
        u = ((value.double() - self.loc.double()) / self.scale.double()).clamp(-1, 1)
        exact = (1 + u).square() * (2 - u) / 4
        return exact.to(torch.result_type(value, self.scale))

    def icdf(self, value: Tensor) -> Tensor:
        """Root of the cubic cdf, u = 2 sin(asin(2 p - 1) / 3), for p in [0, 1].

        Towards the ends 2 p - 1 is rounded to -1 or 1; there ``1 - |u| = 4 sin(a) cos(a - pi / 6)``
        is used instead, with a = asin(sqrt(q)) / 3 and q the smaller of p and 1 - p. The gradient
        is 0 at 0 and 1, where the derivative is infinite.
        """
        p = value.double()
        middle = 2 * ((2 * p - 1).clamp(-0.6, 0.6).asin() / 3).sin()
        q = torch.minimum(p, 1 - p).clamp(min=torch.finfo(torch.float64).tiny)
        a = q.sqrt().asin() / 3
        end = (1 - 4 * a.sin() * (a - math.pi / 6).cos()) * (p - 0.5).sign()
        u = torch.where((2 * p - 1).abs() < 0.5, middle, end)
        return (self.loc.double() + self.scale.double() * u).to(
            torch.result_type(value, self.scale)
        )

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square() / 5

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return 5 / 3 - math.log(3) + self.scale.log()


class GaussianMixture(MixtureSameFamily):  # type: ignore[misc]
    r"""Mixture of M Normals for z, reparameterised.

    .. math::
        q(z) = \sum_m \pi_m \, \mathrm{Normal}(z; \mu_m, \sigma_m), \qquad
        \partial z / \partial \theta = - \partial_\theta F(z; \theta) / q(z)

    A draw comes from one component; its gradient is the implicit one, through the distribution
    function F. With respect to loc and scale it is the component's own, times the probability of
    the component given z. With respect to the weights it moves z across the gap between
    components, and its variance grows without bound as they move apart.

    References:
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients,
        https://arxiv.org/abs/1805.08498.
        Graves (2016), Stochastic backpropagation through mixture density distributions,
        https://arxiv.org/abs/1607.05690.

    Args:
        loc: Means mu, shape (..., M), in units of z.
        scale: Standard deviations sigma, positive, likewise.
        logits: Values log pi up to a constant, likewise, without unit.

    Raises:
        ValueError: If scale is not positive, or the shapes do not broadcast.

    Example:
        >>> d = GaussianMixture(
        ...     torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]), torch.zeros(2)
        ... )
        >>> d.mean, d.variance
        (tensor(0.), tensor(1.2500))
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "logits": constraints.real_vector,
    }
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, logits: Tensor, *, validate_args: bool | None = None
    ) -> None:
        loc, scale, logits = _broadcast(loc, scale, logits)
        super().__init__(
            Categorical(logits=logits, validate_args=validate_args),
            Normal(loc, scale, validate_args=validate_args),
            validate_args=validate_args,
        )

    @property
    def loc(self) -> Tensor:
        """Means of the components, shape (..., M)."""
        loc: Tensor = self.component_distribution.loc
        return loc

    @property
    def scale(self) -> Tensor:
        """Standard deviations of the components, shape (..., M)."""
        scale: Tensor = self.component_distribution.scale
        return scale

    @property
    def logits(self) -> Tensor:
        """Logarithms log pi of the weights, normalised so that the weights add up to 1."""
        logits: Tensor = self.mixture_distribution.logits
        return logits

    @property
    def probs(self) -> Tensor:
        """Weights pi of the components, shape (..., M)."""
        probs: Tensor = self.mixture_distribution.probs
        return probs

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> Self:
        parameters = (self.loc, self.scale, self.logits)
        shape = (*batch_shape, self.loc.shape[-1])
        return type(self)(*(p.expand(shape) for p in parameters), validate_args=False)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        z: Tensor = self.sample(sample_shape)
        with torch.no_grad():
            standard = (z.unsqueeze(-1) - self.loc) / self.scale
            log_density = self.component_distribution.log_prob(z.unsqueeze(-1))
            log_joint = self.logits + log_density
            log_q = log_joint.logsumexp(-1, keepdim=True)
            # Changes of the weights add up to 0, so F - 1 may replace F: take the smaller one.
            lower, upper = torch.special.ndtr(standard), torch.special.ndtr(-standard)
            is_lower = (self.probs * lower).sum(-1, keepdim=True) < 0.5
            across = torch.where(is_lower, lower, -upper) / log_q.exp()
            responsibilities = (log_joint - log_q).exp()
        moved = responsibilities * (self.loc + self.scale * standard) - across * self.probs
        moved = moved.sum(-1)
        value: Tensor = z + (moved - moved.detach())
        return value


@register_kl(Epanechnikov, Normal)
def _kl_epanechnikov_normal(p: Epanechnikov, q: Normal) -> Tensor:
    # The cross-entropy needs only the second moment of p about q's mean.
    second_moment = (p.loc - q.loc).square() + p.variance
    cross_entropy = (
        0.5 * math.log(2 * math.pi) + q.scale.log() + second_moment / (2 * q.scale.square())
    )
    return cross_entropy - p.entropy()
