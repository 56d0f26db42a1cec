"""Posteriors of one latent z: a kernel with bounded support, and a mixture of Normals."""

import math
from typing import ClassVar

import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from ngvae_pyro.distributions.normal_gamma import _broadcast, _Expandable

__all__ = ["Epanechnikov", "GaussianMixture"]


class Epanechnikov(_Expandable):
    r"""Epanechnikov kernel at loc, of half-width scale: a parabola, and 0 beyond it.

    .. math::
        p(z) = \frac{3}{4 s} \left(1 - u^2\right), \qquad u = \frac{z - m}{s} \in [-1, 1]

    Mean m, variance s^2 / 5, entropy 5/3 - log 3 + log s nats. A draw is m + s u with u the median
    of three uniforms on [-1, 1], which is exact: their median has the density 6 F (1 - F) f.

    The KL to a Normal is closed, so an ELBO with this posterior is the ELBO itself. Qin and Huang
    maximise another bound, with the KL replaced by an upper bound of it that they derive for a
    kernel density estimate of the posterior, and that this kernel makes tightest; here it is a
    posterior like any other. At its least, for s^2 = 5, the KL to Normal(0, 1) is 0.046 nats and
    not 0.

    References:
        Qin, Huang (2024), Epanechnikov variational autoencoder, https://arxiv.org/abs/2405.12783.
        Devroye (1986), Non-uniform random variate generation, Springer.

    Arguments:
        loc: mean m, real, in units of z.
        scale: half-width s of the support, positive, in units of z; the standard deviation is
            s / sqrt(5). Both broadcast.

    Raises:
        ValueError: scale not positive, or a value outside [loc - scale, loc + scale]. Without
            validation the log density is -inf there.

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

    def __init__(self, loc, scale, *, validate_args=None):
        self.loc, self.scale = _broadcast(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        return constraints.interval(self.loc - self.scale, self.loc + self.scale)

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        # As the support is checked: rounding takes a draw near the edge onto it, or beyond.
        inside = (value >= self.loc - self.scale) & (value <= self.loc + self.scale)
        below, above, scale = self._distances(value)
        log_density = math.log(0.75) + below.log() + above.log() - 3 * scale.log()
        exact = torch.where(inside, log_density, -math.inf)
        return exact.to(torch.result_type(value, self.scale))

    def _distances(self, value):
        """Of a value from the lower and the upper edge of the support, and the scale, in float64.

        In float32 the difference is rounded by as much as it is near an edge, where the density
        goes to 0. On the edge and beyond, it is a least one, which keeps the logarithm and its
        gradient finite.
        """
        loc, scale = self.loc.double(), self.scale.double()
        offset, least = value.double() - loc, torch.finfo(torch.float64).eps * scale.detach()
        return (scale + offset).clamp(min=least), (scale - offset).clamp(min=least), scale

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(sample_shape)
        # [0, 1) doubled: the lower edge takes two zeros among three numbers.
        a, b, c = self.loc.new_empty((3, *shape)).uniform_(-1, 1).unbind(0)
        u = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
        return self.loc + self.scale * u

    def cdf(self, value):
        """Probability of at most value: (1 + u)^2 (2 - u) / 4."""
        u = ((value.double() - self.loc.double()) / self.scale.double()).clamp(-1, 1)
        exact = (1 + u).square() * (2 - u) / 4
        return exact.to(torch.result_type(value, self.scale))

    def icdf(self, value):
        """The root of the cubic cdf, u = 2 sin(asin(2 p - 1) / 3), for p in [0, 1].

        Towards the ends 2 p - 1 is rounded to -1 or 1; there, with a = asin(sqrt(q)) / 3 and q the
        smaller of p and 1 - p, 1 - |u| = 4 sin(a) cos(a - pi / 6). The gradient is 0 at 0 and 1,
        where the derivative is infinite.
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
    def mean(self):
        return self.loc

    @property
    def variance(self):
        return self.scale.square() / 5

    def entropy(self):
        """Entropy in nats."""
        return 5 / 3 - math.log(3) + self.scale.log()


class GaussianMixture(MixtureSameFamily):
    r"""Mixture of M Normals of z, reparameterised.

    .. math::
        q(z) = \sum_m \pi_m \, \mathrm{Normal}(z; \mu_m, \sigma_m), \qquad
        \partial z / \partial \theta = - \partial_\theta F(z; \theta) / q(z)

    A draw is one of a component; its gradient is the implicit one, through the distribution
    function F: that of loc and scale is the component's own, times how likely the component is
    given z. The gradient of the weights moves z across the gap between components, and its
    variance grows without bound as they part.

    References:
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients,
        https://arxiv.org/abs/1805.08498.
        Graves (2016), Stochastic backpropagation through mixture density distributions,
        https://arxiv.org/abs/1607.05690.

    Arguments:
        loc: means mu, shape (..., M), in units of z.
        scale: standard deviations sigma, positive, likewise.
        logits: log pi up to a constant, likewise, without unit.

    Raises:
        ValueError: scale not positive, or a shape that does not fit the others.

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

    def __init__(self, loc, scale, logits, *, validate_args=None):
        loc, scale, logits = _broadcast(loc, scale, logits)
        super().__init__(
            Categorical(logits=logits, validate_args=validate_args),
            Normal(loc, scale, validate_args=validate_args),
            validate_args=validate_args,
        )

    @property
    def loc(self):
        return self.component_distribution.loc

    @property
    def scale(self):
        return self.component_distribution.scale

    @property
    def logits(self):
        """log pi, of weights pi that add up to 1."""
        return self.mixture_distribution.logits

    @property
    def probs(self):
        return self.mixture_distribution.probs

    def expand(self, batch_shape, _instance=None):
        parameters = (self.loc, self.scale, self.logits)
        shape = (*batch_shape, self.loc.shape[-1])
        return type(self)(*(p.expand(shape) for p in parameters), validate_args=False)

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        z = self.sample(sample_shape)
        with torch.no_grad():
            standard = (z.unsqueeze(-1) - self.loc) / self.scale
            log_density = self.component_distribution.log_prob(z.unsqueeze(-1))
            log_joint = self.logits + log_density
            log_q = log_joint.logsumexp(-1, keepdim=True)
            # Changes of the weights add up to 0, so F may stand for F - 1: whichever is small.
            lower, upper = torch.special.ndtr(standard), torch.special.ndtr(-standard)
            is_lower = (self.probs * lower).sum(-1, keepdim=True) < 0.5
            across = torch.where(is_lower, lower, -upper) / log_q.exp()
            responsibilities = (log_joint - log_q).exp()
        moved = responsibilities * (self.loc + self.scale * standard) - across * self.probs
        moved = moved.sum(-1)
        return z + (moved - moved.detach())


@register_kl(Epanechnikov, Normal)
def _kl_epanechnikov_normal(p, q):
    # Of q's log density only the second moment of p about q's mean is needed.
    second_moment = (p.loc - q.loc).square() + p.variance
    cross_entropy = (
        0.5 * math.log(2 * math.pi) + q.scale.log() + second_moment / (2 * q.scale.square())
    )
    return cross_entropy - p.entropy()
