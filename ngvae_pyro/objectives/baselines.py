"""Objectives of the baselines: the ELBO with a penalty.

They only need a guide whose site ``z`` is Normal (a :class:`GaussianMixture` for
:class:`GaussianMixtureELBO`), and a model whose prior of ``z`` has a registered KL from it.
"""

import math
from itertools import pairwise
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from ngvae_pyro.distributions.location_scale import GaussianMixture
from ngvae_pyro.errors import UserError
from ngvae_pyro.model import VAE, ArdVAE
from ngvae_pyro.objectives.base import MeanFieldELBO, PenalisedELBO, TraceELBO
from ngvae_pyro.specs import (
    BetaSpec,
    BetaTCSpec,
    CapacitySpec,
    DIPIISpec,
    DIPISpec,
    ElboSpec,
    FactorSpec,
    FitSpec,
    GamixSpec,
    Spec,
)

# Smallest variance of posterior means over a batch: the square of the float32 rounding error of
# values of about 10.
LEAST_VARIANCE = 1e-12
ELBOS: dict[str, type[TraceELBO]] = {
    "Trace_ELBO": TraceELBO,
    "TraceMeanField_ELBO": MeanFieldELBO,
}


class BetaELBO(PenalisedELBO):
    """The beta-VAE: E[-log p(x | z)] + beta KL(q(z | x) || p(z)).

    Higgins et al. (2017), "beta-VAE: Learning basic visual concepts with a constrained variational
    framework", ICLR. Beta 1 is the ELBO.
    """

    def __init__(self, beta: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.beta = beta

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        return (self.beta - 1.0) * kl_divergence(q, p).sum()


class ArdELBO(BetaELBO):
    """The ARD-VAE: E[-log p(x | z)] + beta KL(q(z | x) || p(z)), where p(z) follows the codes.

    With mu and sigma of the encoder and s of the prior the KL is, summed over the latents,

        1/2 (log s^2 - log sigma^2 - 1 + (mu^2 + sigma^2) / s^2).

    Saha, Joshi and Whitaker (2025), arXiv:2501.10901, equation 15; their code
    (github.com/Surojit-Utah/ARD-VAE) has s^2 in place of log s^2, which has no gradient either. The
    draws of a step become codes from which s is computed for the steps to come; the KL takes it as
    constant. The paper sets 10,000 images apart for them, others in each epoch. Here they are the
    codes of the latest steps, 10,000 unless the prior declares another number, because a training
    is so many steps and not epochs, and may have fewer images; the lag remains.

    The paper's loss has the squared error in place of -log p(x | z), so its beta, tuned for each
    data set, is 2 scale^2 times this one: 0.02 times for a gaussian of the scale 0.1. The code has
    0.05 for CIFAR-10 and 0.5 for MNIST, in [0, 1], and 3 for CelebA, in [-1, 1].

    Args:
        beta: Weight of the KL; with 1 this is the ELBO.
        model: Its prior is computed from the codes wherever a loss has gradients.
    """

    def __init__(self, beta: float, model: ArdVAE, **settings: Any) -> None:
        super().__init__(beta, **settings)
        self.model = model

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        # Without gradients it is an evaluation, which leaves the model as it is.
        if torch.is_grad_enabled():
            decoder = self.model.decoder
            decoder.precision.learn(decoder.scale * z)
        return super().penalty(z, q, p)


class CapacityELBO(PenalisedELBO):
    """Capacity annealing: ``E[-log p(x | z)] + gamma |KL(q(z | x) || p(z)) - C|``.

    C rises linearly from 0 to ``capacity`` nats, which it reaches at the fraction ``end`` of
    training; the KL is the mean over the batch. Burgess et al. (2018), "Understanding disentangling
    in beta-VAE", arXiv:1804.03599.
    """

    def __init__(self, gamma: float, capacity: float, end: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.gamma, self.capacity, self.end = gamma, capacity, end

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        kl = kl_divergence(q, p).sum()
        risen = torch.as_tensor(self.fraction / self.end).clamp(max=1.0)
        target = len(z) * self.capacity * risen
        return self.gamma * (kl - target).abs() - kl


class BetaTCELBO(PenalisedELBO):
    """The beta-TCVAE: -ELBO + (beta - 1) TC, TC = KL(q(z) || prod_k q(z_k)).

    The mean KL has three parts, I(x; z), TC and sum_k KL(q(z_k) || p(z_k)), and the second has the
    weight beta. The aggregate posterior is estimated by minibatch-weighted sampling,

        log q(z_i) ~ log 1 / (N B) sum_j q(z_i | x_j),

    over the B images of the batch; N only adds a constant to the loss.
    Chen, Li, Grosse and Duvenaud (2018), "Isolating sources of disentanglement in variational
    autoencoders", arXiv:1802.04942, section 4.1.

    Args:
        beta: Weight of the total correlation.
        data_size: N, the number of training images.
    """

    def __init__(self, beta: float, data_size: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.beta, self.data_size = beta, data_size

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        return (self.beta - 1.0) * self.total_correlation(z, q).sum()

    def numbers_kept(self, rows: int, latents: int) -> int:
        # For the density of each draw under the posterior of each image.
        return 2 * rows**2 * latents

    def total_correlation(self, z: Tensor, q: Normal) -> Tensor:
        """Estimates log q(z_i) - sum_k log q(z_ik) for draws z (B, K) of q, shape (B,)."""
        log_norm = math.log(len(z) * self.data_size)
        # Every draw under the posterior of every image: (B, B, K).
        crossed = q.log_prob(z.unsqueeze(1))
        joint = crossed.sum(-1).logsumexp(1) - log_norm
        product = (crossed.logsumexp(1) - log_norm).sum(-1)
        difference: Tensor = joint - product
        return difference


class FactorELBO(PenalisedELBO):
    """The FactorVAE: -ELBO + gamma TC, the total correlation estimated by a density ratio.

    A discriminator D(z) with two logits tells draws of q(z) from draws of prod_k q(z_k). The latter
    are draws for another part of the batch, with each latent shuffled over the images. Then
    TC = E_q(z)[log D - log(1 - D)], the difference of the logits. D learns by cross-entropy in
    the same backward pass: the penalty treats its weights as constants, and D treats z as constant.
    Kim and Mnih (2018), "Disentangling by factorising", arXiv:1802.05983, algorithm 2.

    Args:
        gamma: Weight of the total correlation.
        latent_size: K.
        width: Units of each hidden layer of the discriminator.
        depth: Number of its hidden layers.
        learning_rate: Learning rate of the discriminator, for ``fit``.

    Raises:
        UserError: If a batch has only one image, which leaves nothing to shuffle.
    """

    def __init__(
        self,
        gamma: float,
        latent_size: int,
        width: int = 1000,
        depth: int = 6,
        learning_rate: float = 1e-4,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.gamma, self.learning_rate = gamma, learning_rate
        sizes = [latent_size] + [width] * depth
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(width, 2))

    def parameter_groups(self, device: torch.device) -> list[dict[str, Any]]:
        own = list(self.discriminator.to(device).parameters())
        # The betas are those of Kim and Mnih (2018).
        return [{"params": own, "initial_lr": self.learning_rate, "betas": (0.5, 0.9)}]

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        if len(z) < 2:
            raise UserError("the FactorVAE needs batches of at least 2 images, got 1")
        # Registered with Pyro, so that a plain SVI trains it too.
        pyro.module("discriminator", self.discriminator)
        frozen = {name: w.detach() for name, w in self.discriminator.named_parameters()}
        logits = functional_call(self.discriminator, frozen, (z,))
        total_correlation = (logits[:, 0] - logits[:, 1]).sum()

        joint, other = z.detach().chunk(2)
        shuffled = torch.stack(
            [column[torch.randperm(len(other), device=z.device)] for column in other.T], 1
        )
        logits = self.discriminator(torch.cat([joint, shuffled]))
        labels = torch.ones(len(logits), dtype=torch.long, device=z.device)
        labels[: len(joint)] = 0
        # A mean, as in the paper; times B because losses are sums over the batch.
        cross_entropy = len(z) * nn.functional.cross_entropy(logits, labels)
        loss: Tensor = self.gamma * total_correlation + cross_entropy
        return loss


class DIPELBO(PenalisedELBO):
    """The DIP-VAE: -ELBO + off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2.

    C is the covariance over the batch of the posterior means (``i``), or of the draws, which adds
    the mean posterior variances to the diagonal (``ii``). Kumar, Sattigeri and Balakrishnan (2018),
    "Variational inference of disentangled latent concepts from unlabeled observations",
    arXiv:1711.00848, equations 6 and 7.
    """

    def __init__(
        self, kind: Literal["i", "ii"], off_diagonal: float, diagonal: float, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.kind, self.off_diagonal, self.diagonal = kind, off_diagonal, diagonal

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        centred = q.mean - q.mean.mean(0)
        covariance = centred.T @ centred / len(z)
        if self.kind == "ii":
            covariance = covariance + q.variance.mean(0).diag()
        diagonal = covariance.diagonal()
        off_diagonal = covariance.square().sum() - diagonal.square().sum()
        regulariser = (
            self.off_diagonal * off_diagonal + self.diagonal * (diagonal - 1).square().sum()
        )
        # It belongs to the batch as a whole, whereas the ELBO is a sum over its images.
        return len(z) * regulariser


def collapse(q: Normal | GaussianMixture) -> Tensor:
    """How far the variances of q are from 1: 1/2 (s^2 - 1 - log s^2), which is 0 at s = 1.

    It grows without bound as s falls to 0. For a mixture it is the mean over the components,
    weighted by their weights. Shape (B, K).
    """
    variance = q.scale.square()
    distance = 0.5 * (variance - 1.0 - variance.log())
    if isinstance(q, GaussianMixture):
        return (q.probs * distance).sum(-1)
    return distance


class GaussianMixtureELBO(PenalisedELBO):
    """A mixture posterior's -ELBO + w sum_k sum_m pi_km 1/2 (s_km^2 - 1 - log s_km^2).

    The KL of a mixture has no closed form, so it is estimated from draws, log q(z | x) - log p(z).
    The second term keeps the components' variances s^2 from collapsing; w = 0 is the ELBO. The form
    is that of the author's code for Rivera (2024), arXiv:2309.13160; see :class:`GamixELBO`.
    """

    def __init__(self, regulariser: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.regulariser = regulariser

    def penalty(self, z: Tensor, q: GaussianMixture, p: Normal) -> Tensor:
        return self.regulariser * collapse(q).sum()


class GamixELBO(PenalisedELBO):
    """The GAMIX-VAE: the KL is that of the mixture of a batch's posteriors, by its moments.

        E[-log p(x | z)] + 1/2 sum_k (M_k^2 + V_k - 1 - log V_k)
            + w 1/2 sum_k (s_k^2 - 1 - log s_k^2),

    where M_k and V_k are the mean and the variance of the posterior means mu_k over the batch. The
    first KL is that of Normal(M, V^1/2) from the prior, in place of the mixture
    q(z) = 1/B sum_i q(z | x_i), and does not constrain the variance s^2 of a single image; the last
    term keeps that from collapsing. The sum is not a bound of log p(x). Rivera (2024), "How to
    train your VAE", arXiv:2309.13160: the paper's text was not available to us, the formula is that
    of the author's code (github.com/marianorivera/How2TrainUrVAE, 1.4.3), where w is 0.2.

    Raises:
        UserError: If a batch has only one image, whose mixture has no variance.
    """

    def __init__(self, regulariser: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.regulariser = regulariser

    def penalty(self, z: Tensor, q: Normal, p: Normal) -> Tensor:
        if len(z) < 2:
            raise UserError("the GAMIX-VAE needs batches of at least 2 images, got 1")
        # If all images are the same, V is 0 or a rounding error, whose logarithm is meaningless.
        variance = q.mean.var(0, correction=0).clamp(min=LEAST_VARIANCE)
        mixture = Normal(q.mean.mean(0), variance.sqrt())
        of_the_batch = len(z) * kl_divergence(mixture, Normal(p.mean[0], p.stddev[0])).sum()
        alone = kl_divergence(q, p).sum()
        return of_the_batch - alone + self.regulariser * collapse(q).sum()


def plain_elbo(fit: FitSpec, kind: type[TraceELBO] | None = None) -> TraceELBO:
    """-ELBO by the estimator that ``fit.elbo`` names, or by ``kind``."""
    # With the nesting given, Pyro need not run model and guide once to guess it, hidden from the
    # handlers around a step.
    return (kind or ELBOS[fit.elbo])(
        num_particles=fit.particles, vectorize_particles=fit.particles > 1, max_plate_nesting=1
    )


def baseline(spec: Spec, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
    """The objective of a gaussian guide, as a spec declares it.

    Args:
        spec: A member of :data:`ngvae_pyro.specs.ObjectiveSpec`.
        fit: The estimator of a plain ELBO, and the number of particles.
        model: The model that is trained.
        data_size: Number of training images.
    """
    particles: dict[str, Any] = {"num_particles": fit.particles}
    match spec:
        case ElboSpec():
            return plain_elbo(fit)
        case BetaSpec():
            return BetaELBO(spec.beta, **particles)
        case CapacitySpec():
            return CapacityELBO(spec.gamma, spec.capacity, spec.end, **particles)
        case BetaTCSpec():
            return BetaTCELBO(spec.beta, data_size, **particles)
        case FactorSpec():
            return FactorELBO(
                spec.gamma,
                model.latent_size,
                spec.width,
                spec.depth,
                spec.learning_rate,
                **particles,
            )
        case DIPISpec():
            return DIPELBO("i", spec.off_diagonal, spec.diagonal, **particles)
        case DIPIISpec():
            return DIPELBO("ii", spec.off_diagonal, spec.diagonal, **particles)
        case GamixSpec():
            return GamixELBO(spec.regulariser, **particles)
        case _:
            raise TypeError(f"no objective is known for {type(spec).__name__}")
