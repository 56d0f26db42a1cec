"""Held-out log likelihood by importance sampling: models with different bounds on one scale.

An ELBO falls short of log p(x) by the KL from its own posterior to the true one, so the ELBOs of
two guides are not comparable; the likelihoods that both bound are.
"""

import math
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.func import jvp, vmap

from ngvae_pyro import _arviz, machine
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data import Images
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions import NormalGammaMarginal
from ngvae_pyro.errors import Notice, UserError, expect
from ngvae_pyro.fitted import Fit, check_fit, data_of
from ngvae_pyro.machine import seeded
from ngvae_pyro.model import VAE
from ngvae_pyro.nn import activations

# Images times draws that share their random numbers, and are decoded at once where there is room;
# few, so that they stay in the processor's cache.
CHUNK = 2048
# Bytes that decoded images, or Jacobians, may take at once. Not a share of what the machine has, so
# that sums are rounded alike everywhere.
ROOM = 256 * 2**20

# Modes of a posterior, at most, and draws of the prior that they are looked for from.
MODES, STARTS = 16, 128
# A mode of less of the posterior is left out; one that is kept gets at least so many of the draws.
LEAST_SHARE, LEAST_DRAWS = 0.01, 0.05
# Nats below a mode at which its mirror image may still lead to another.
REACH = 100.0


@dataclass(frozen=True)
class LogLikelihood:
    """Log likelihood of each image and how far it can be trusted.

    ``values``: log p(x), nats, shape (N,). ``pareto_k``: shape (N,); above 0.7 the estimate is
    governed by a few draws and is too low, and a low k does not tell that no mode was missed.
    ``draws``: S.
    """

    values: np.ndarray
    pareto_k: np.ndarray
    draws: int

    def summary(self) -> dict[str, Any]:
        """``mean`` and its standard error ``se`` over the images, nats, and the Pareto k.

        ``k_median`` is their median and ``k_bad`` the share of images with k above 0.7.
        """
        count = len(self.values)
        return {
            "mean": float(self.values.mean()),
            "se": float(self.values.std(ddof=1) / count**0.5) if count > 1 else 0.0,
            "k_median": float(np.median(self.pareto_k)),
            "k_bad": float((self.pareto_k > _arviz.GOOD_K).mean()),
            "draws": self.draws,
            "images": count,
        }


def row_bytes(model: VAE) -> int:
    """About how many bytes an image takes while it is decoded and compared."""
    pixels = math.prod(model.image_shape)
    return machine.FLOAT_BYTES * (activations(model.spec.decoder, model.image_shape) + 4 * pixels)


@torch.no_grad()
def log_joint(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Log p(x, z), nats, of images x (B, C, H, W) and z (..., B, K): shape (..., B).

    As many are decoded at once as there is room for.
    """
    rows = max(1, ROOM // row_bytes(model))
    draws = z.reshape(-1, *z.shape[-2:])
    images = min(len(x), rows)
    parts = []
    for start in range(0, len(x), images):
        of_them = draws[:, start : start + images]
        found = [
            model.likelihood(model.decoder(few)).log_prob(x[start : start + images])
            + model.marginal.log_prob(few).sum(-1)
            for few in of_them.split(max(1, rows // images))
        ]
        parts.append(torch.cat(found))
    return torch.cat(parts, -1).reshape(z.shape[:-1])


def prior_precision(model: VAE, z: Tensor, information: Tensor) -> Tensor:
    """Precision of the Normal that stands for p(z) about z, where the likelihood tells of z.

    1 for a Normal prior. Of the joint prior, a scale mixture of Normals, it is the mean of the
    precision given z, with z squared and the variance of z added for a square: its spike at 0 is
    narrower than nearly every posterior.
    """
    if not isinstance(model.marginal, NormalGammaMarginal):
        return torch.ones_like(z)
    spread = (z.square() + 1 / (1 + information)).sqrt()
    return model.marginal.joint.precision_given(spread).mean


@dataclass(frozen=True)
class Peaks:
    """Gaussians at modes: ``loc`` (N, K), ``precision`` (N, K, K), ``height`` (N,).

    ``told`` (N, K) says which latents the likelihood tells of; height is log p(x, loc).
    """

    loc: Tensor
    precision: Tensor
    height: Tensor
    told: Tensor


@torch.no_grad()
def climb(model: VAE, x: Tensor, z: Tensor, iterations: int = 3) -> Peaks:
    """The modes of p(z | x) that Gauss-Newton reaches from z (B, K), see :func:`laplace`."""
    columns, pixels = z.shape[-1], math.prod(x.shape[1:])
    # One column of a Jacobian with what forward mode keeps beside it, and copies in float64.
    column = 2 * row_bytes(model) + 24 * pixels + 80 * columns
    machine.check("the log likelihood (latent_size)", 2.0 * columns * (24 * pixels + 8 * columns))
    images = max(1, ROOM // (columns * column))
    parts = [
        _climb(model, *few, iterations, max(1, min(columns, ROOM // column)))
        for few in zip(x.split(images), z.split(images), strict=True)
    ]
    names = ("loc", "precision", "height", "told")
    return Peaks(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _climb(model: VAE, x: Tensor, z: Tensor, iterations: int, columns: int) -> Peaks:
    def slopes(z: Tensor, directions: Tensor) -> Tensor:
        """Derivatives of the decoder's output at z (K,) in directions (N, K), shape (N, P)."""
        decode = lambda z: model.decoder(z).flatten()  # noqa: E731
        return vmap(lambda v: jvp(decode, (z,), (v,))[1])(directions)

    jacobian = vmap(slopes, in_dims=(0, None))
    axes = torch.eye(z.shape[-1]).to(z).split(columns)
    value, damping = log_joint(model, x, z), z.new_full((len(z), 1, 1), 1e-4).double()
    for _ in range(iterations):
        with warnings.catch_warnings():
            # Torch's forward mode uses it on first use.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            j = torch.cat([jacobian(z, some) for some in axes], 1).double().mT
        fn = model.likelihood(model.decoder(z)).base_dist
        weight = (fn.scale**-2 if isinstance(fn, Normal) else fn.variance).flatten(1).double()
        residual = (x - fn.mean).flatten(1).double()
        # Of the natural parameter the score is the residual itself; of a Normal's mean, F times it.
        score = weight * residual if isinstance(fn, Normal) else residual
        information = j.mT @ (weight.unsqueeze(-1) * j)
        own = prior_precision(model, z.double(), information.diagonal(dim1=1, dim2=2))
        precision = own.diag_embed() + information
        gradient = (j.mT @ score.unsqueeze(-1)).squeeze(-1) - own * z
        damped = precision + damping * precision.diagonal(dim1=1, dim2=2).diag_embed()
        new = z + torch.linalg.solve(damped, gradient).to(z.dtype)
        at_new = log_joint(model, x, new)
        better = at_new > value
        damping = torch.where(better[:, None, None], damping / 30, damping * 30)
        z, value = torch.where(better.unsqueeze(-1), new, z), torch.where(better, at_new, value)
    told = information.diagonal(dim1=1, dim2=2) > 0.5 * own
    return Peaks(z.double(), precision, value.double(), told)


def laplace(model: VAE, x: Tensor, z: Tensor, iterations: int = 3) -> MultivariateNormal:
    """Gaussian approximation of the true posterior p(z | x) at its mode.

    Gauss-Newton from z: with J the Jacobian of the decoder's output and F the Fisher information of
    the likelihood in it (1 / scale^2 for a gaussian), the precision is D + J' F J, D being that of
    the prior: 1, or under the joint prior the mean precision given z. A step is taken where it
    raises p(x, z); where not, the next is shorter (Marquardt, 1963).

    Args:
        model: Gives decoder, likelihood and prior.
        x: Images (B, C, H, W).
        z: Where to start, shape (B, K).
        iterations: Steps.
    """
    found = climb(model, x, z, iterations)
    return MultivariateNormal(found.loc, precision_matrix=found.precision)


def _square(offset: Tensor, precision: Tensor) -> Tensor:
    """Offset' precision offset, over the last axis."""
    return ((offset.unsqueeze(-2) @ precision).squeeze(-2) * offset).sum(-1)


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Matrices (B, K, K) times vectors (S, B, K), without a copy of the matrices for each."""
    return (matrix @ vectors.permute(1, 2, 0)).permute(2, 0, 1)


class Modes:
    """Modes of p(z | x) of a few images: the first that was found of each, and what is added.

    ``loc`` (B, M, K), ``precision`` (B, M, K, K), ``height`` (B, M) and ``told`` (B, M, K) are as
    in :class:`Peaks`; an image that has fewer than M modes has heights of -inf. ``more`` (B,) says
    which have more than are kept.

    Args:
        model: Whose posterior it is.
        x: Images (B, C, H, W).
        first: Their first modes.
    """

    def __init__(self, model: VAE, x: Tensor, first: Peaks) -> None:
        self.model, self.x = model, x
        self.loc, self.precision = first.loc.unsqueeze(1), first.precision.unsqueeze(1)
        self.height, self.told = first.height.unsqueeze(1), first.told.unsqueeze(1)
        self.more = torch.zeros_like(first.height, dtype=torch.bool)

    def lead_elsewhere(self, z: Tensor, value: Tensor) -> Tensor:
        """Whether points are far higher than the Gaussians at the modes say, shape (B, N).

        Args:
            z: Shape (B, N, K).
            value: log p(x, z), shape (B, N).
        """
        elsewhere = torch.ones_like(value, dtype=torch.bool)
        for m in range(self.height.shape[1]):
            offset = z.double() - self.loc[:, m, None]
            drop = ((offset @ self.precision[:, m]) * offset).sum(-1) / 2
            height = self.height[:, m, None]
            # Within two standard deviations it is that mode, unless the climb stopped short of it.
            outside = (value > height - drop / 2) & (drop > 2.0)
            elsewhere &= outside | (value > height + 1.0) | height.isneginf()
        return elsewhere

    def add(self, index: Tensor, start: Tensor, iterations: int) -> None:
        """Climb from starts (N, K), each for the image of that index, and keep what are new modes.

        What is higher than a mode that it is near to takes its place.
        """
        if not len(index):
            return
        found = climb(self.model, self.x[index], start, iterations)
        # One an image at a time, so that each is compared with those before it.
        turn = (index.unsqueeze(1) == index).tril(-1).sum(1)
        for n in range(int(turn.max()) + 1):
            self._keep(index, found, turn == n)

    def _keep(self, index: Tensor, found: Peaks, these: Tensor) -> None:
        """Keep what is new among some of the peaks that were found, one an image."""
        index = index[these]
        loc, precision, height = (v[these] for v in (found.loc, found.precision, found.height))
        present = self.height[index].isfinite()
        offset = loc.unsqueeze(1) - self.loc[index]
        distance = torch.minimum(
            _square(offset, self.precision[index]), _square(offset, precision.unsqueeze(1))
        )
        near, nearest = distance.where(present, math.inf).min(1)
        known = near < 4.0
        slot = torch.where(known, nearest, present.sum(1))
        # What is lower by so many nats has no share in the posterior.
        new = ~known & (height > self.height[index].amax(1) - 30.0)
        new |= known & (height > self.height[index].gather(1, nearest[:, None])[:, 0] + 0.5)
        self.more[index[new & (slot == MODES)]] = True
        new &= slot < MODES
        if new.any() and slot[new].max() == self.height.shape[1]:
            for name in ("loc", "precision", "told"):
                values = getattr(self, name)
                setattr(self, name, torch.cat((values, values[:, :1]), 1))
            absent = torch.full_like(self.height[:, :1], -math.inf)
            self.height = torch.cat((self.height, absent), 1)
        told = found.told[these]
        for name, values in (("loc", loc), ("precision", precision), ("height", height)):
            getattr(self, name)[index[new], slot[new]] = values[new]
        self.told[index[new], slot[new]] = told[new]

    def shares(self, draws: int) -> Tensor:
        """How many of the draws each mode gets, whole numbers (B, M).

        By its evidence under the Gaussian, the height and half the log determinant of the
        covariance; none for less than 1 % of it, and else at least 5 %.
        """
        if self.height.shape[1] == 1:
            return torch.full_like(self.height, draws)
        evidence = self.height - torch.linalg.slogdet(self.precision).logabsdet / 2
        share = evidence.softmax(1)
        kept = share >= LEAST_SHARE
        share = torch.where(kept, share.clamp(min=LEAST_DRAWS), 0.0)
        ends = (draws * share.cumsum(1) / share.sum(1, keepdim=True)).round()
        return ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))


def find_modes(model: VAE, x: Tensor, start: Tensor, prior: tuple[Tensor, Tensor]) -> Modes:
    """Modes of p(z | x) of images x (B, C, H, W), climbed to from several starts.

    From the encoder's mean; from 16 / K of 128 draws of the prior, at least one, the highest of
    those that are higher than their neighbours; and from mirror images of each mode that was found,
    with one sign changed, all, or up to 6 latents any two, the highest 256 / K of them, at most 16.
    All but the first only where p(x, z) is higher than the Gaussians at the modes say, and mirror
    images up to 100 nats below. A climb costs K decoded images and more, so of many latents there
    are few: beyond 256 none from a mirror image.

    Args:
        model: Whose posterior it is.
        x: Images.
        start: The encoder's means (B, K).
        prior: Draws of the prior (N, K), and the decoder's output of them.
    """
    modes = Modes(model, x, climb(model, x, start))
    latents, (drawn, output) = start.shape[-1], prior
    few = max(1, ROOM // (len(x) * row_bytes(model)))
    log_p = torch.cat([model.likelihood(o.unsqueeze(1)).log_prob(x) for o in output.split(few)])
    value = (log_p + model.marginal.log_prob(drawn).sum(-1, keepdim=True)).T
    distance = torch.cdist(drawn, drawn)
    near = distance.topk(min(2 * latents + 1, len(drawn)), largest=False).indices
    elsewhere = (value >= value[:, near].amax(-1)) & modes.lead_elsewhere(
        drawn.expand(len(x), -1, -1), value
    )
    order = torch.where(elsewhere, value, -math.inf).topk(min(max(1, 16 // latents), len(drawn)))
    index, rank = order.values.isfinite().nonzero().unbind(1)
    modes.add(index, drawn[order.indices[index, rank]], 3 + 12 // latents)
    signs, m = mirrors(latents).to(start), 0
    most = min(MODES, 256 // latents, len(signs))
    while most and m < modes.height.shape[1]:
        mirrored = modes.loc[:, m, None].to(start.dtype) * signs
        value = log_joint(model, x, mirrored.transpose(0, 1)).T
        elsewhere = value > modes.height[:, m, None] - REACH
        elsewhere &= modes.lead_elsewhere(mirrored, value)
        elsewhere &= value >= value.where(elsewhere, -math.inf).topk(most).values[:, -1:]
        for n in elsewhere.any(0).nonzero().flatten().tolist():
            # Anew, because the mirror image before may have led to the same mode.
            still = modes.lead_elsewhere(mirrored[:, n, None], value[:, n, None]).squeeze(1)
            index = (elsewhere[:, n] & still).nonzero().squeeze(1)
            modes.add(index, mirrored[index, n], 3)
        m += 1
    return modes


def mirrors(latents: int) -> Tensor:
    """Signs (N, K) of mirror images: one changed, all, and of up to 6 latents each two."""
    one = 1.0 - 2.0 * torch.eye(latents)
    two = [one[i] * one[j] for i in range(latents) for j in range(i)] if latents <= 6 else []
    return torch.stack([*one, *two, -torch.ones(latents)]).unique(dim=0)


class Proposal:
    """r(z | x): Gaussians at the modes, in whole numbers of the draws.

    In a model whose p(z) is no Normal, latents of which the likelihood says next to nothing have
    their prior, and the others the Gaussian given those.

    Args:
        modes: Of the images.
        draws: S.
        widen: Factor on the scales.
    """

    def __init__(self, modes: Modes, draws: int, widen: float) -> None:
        self.modes, self.widen = modes, widen
        self.prior = None if isinstance(modes.model.marginal, Normal) else modes.model.marginal
        self.counts = modes.shares(draws)
        told = modes.told | (self.prior is None)
        both = told.unsqueeze(-1) & told.unsqueeze(-2)
        eye = torch.eye(told.shape[-1], dtype=torch.float64, device=told.device)
        self.told, precision = told, torch.where(both, modes.precision, eye)
        law = MultivariateNormal(torch.zeros_like(modes.loc), precision_matrix=precision)
        self.scale_tril = widen * law.scale_tril
        # Times the offset of what has its prior: how far that moves the others.
        self.cross = None
        if not told.all():
            cross = told.unsqueeze(-1) & ~told.unsqueeze(-2)
            self.cross = torch.linalg.solve(precision, torch.where(cross, modes.precision, 0.0))

    def _centre(self, z: Tensor, m: int) -> Tensor:
        """Mean of the Gaussian of mode m given the latents that have their prior."""
        loc = self.modes.loc[:, m]
        if self.cross is None:
            return loc
        return loc - _times(self.cross[:, m], z - loc)

    def sample(self, noise: Tensor, of_prior: Tensor | None) -> Tensor:
        """Draws (S, B, K), from as many of the standard Normal and of the prior."""
        z = torch.zeros_like(noise)
        place = torch.arange(len(noise), device=noise.device).unsqueeze(-1)
        ends = self.counts.cumsum(1)
        for m in range(self.counts.shape[1]):
            offset = _times(self.scale_tril[:, m], noise)
            if of_prior is None:
                drawn = self.modes.loc[:, m] + offset
            else:
                told = self.told[:, m]
                drawn = torch.where(told, self._centre(of_prior, m) + offset, of_prior)
            chosen = (place < ends[:, m]) & (place >= ends[:, m] - self.counts[:, m])
            z = torch.where(chosen.unsqueeze(-1), drawn, z)
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log r(z | x) of draws (S, B, K), shape (S, B)."""
        parts = []
        for m in range(self.counts.shape[1]):
            told, scale_tril = self.told[:, m], self.scale_tril[:, m]
            offset = torch.where(told, z - self._centre(z, m), 0.0)
            law = MultivariateNormal(torch.zeros_like(offset[0]), scale_tril=scale_tril)
            part = law.log_prob(offset) + (self.counts[:, m] / self.counts.sum(1)).log()
            if self.prior is not None:
                # The Gaussian has a standard one, widened, for each that has its prior.
                constant = 0.5 * math.log(2 * math.pi) + math.log(self.widen)
                own = self.prior.log_prob(z.float()).double() + constant
                part = part + torch.where(told, 0.0, own).sum(-1)
            parts.append(part)
        return torch.stack(parts).logsumexp(0)


@torch.no_grad()
def log_likelihood(
    fit: Fit, data: Images, *, draws: int = 100, widen: float = 1.2, seed: int = 0
) -> LogLikelihood:
    """Log p(x) of each image, by importance weighting.

        log p(x) ~ log 1/S sum_s w_s,   w_s = p(x | z_s) p(z_s) / r(z_s | x),   z_s ~ r(z | x)

    The estimate is low on average and rises to log p(x) with S, whatever the proposal r: Burda,
    Grosse and Salakhutdinov (2015), "Importance weighted autoencoders", arXiv:1509.00519. There r
    is the encoder's posterior. Here it is :func:`laplace`, found from the encoder's mean, because
    a mean-field posterior is a poor proposal for a correlated one: on sprites, 500 draws from the
    posteriors of the NG-VAE and of the vanilla VAE were worth 17 and 15, with Pareto k near 1 and
    estimates 1.3 and 0.9 nats too low; from this r they are worth 236 and 228, with k near 0.

    Where a posterior has several modes, r is a mixture of such Gaussians, weighed by their
    evidence, at those modes that :func:`find_modes` finds from several starts, at most 16. The S
    draws are dealt out to them, and each weighed by the whole mixture (Owen and Zhou, 2000, "Safe
    and effective importance sampling", JASA 95). Under the joint prior, whose tails are heavier
    than a Gaussian's, latents of which the image says next to nothing are drawn from their prior.

    Counts have no such Gaussian; their r is the encoder's posterior again, with exact weights from
    both pmfs, and a poor one: of a Poisson VAE trained on sprites for 400 steps, all Pareto k were
    above 0.7, so there the estimate is low by an unknown amount.

    The precision is integrated out of p. The Pareto k of the weights is that of Vehtari, Simpson,
    Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", arXiv:1507.02646. It sees
    only where draws fall: of a mode that was not found there is no draw, and a posterior with two
    equal modes of which one is missed is low by log 2 = 0.69 nats at any k.

    The memory that it takes does not grow with the number of images, and is bounded by doing fewer
    at a time; how many are done at a time changes the result by rounding only.

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        data: Held-out images or vectors, as :meth:`ngvae_pyro.Fit.as_images` takes them.
        draws: S, for each image, at least 25.
        widen: Factor on the scale of a Gaussian r; above 1, so that its tails cover those of the
            posterior.
        seed: Of the draws.

    Raises:
        UserError: For fewer than 25 draws, which have no Pareto k, and for a latent size whose
            Jacobians, or as many draws, do not fit into memory.

    Warns:
        Notice: Of images whose posterior has more than 16 modes.
    """
    check_fit(fit)
    expect("draws", draws, int, "a whole number")
    expect("widen", widen, Real, "a factor above 0")
    if not 0 < widen < math.inf:
        raise UserError(f"widen: expected a factor above 0, got {widen}")
    if draws < 25:
        raise UserError(f"draws: expected at least 25, got {draws}")
    data = data_of(fit, data)
    model, latents = fit.model, fit.model.latent_size
    # Of so many images the random numbers are drawn together.
    step = max(1, CHUNK // draws)
    needed = 48 * draws * latents
    machine.check("the log likelihood (draws, latent_size)", needed * step, fit.device)
    # Modes are found for more of them at once where the draws are many.
    size = step if model.discrete else step * max(1, min(32, ROOM // needed) // step)
    values, pareto_k, more = [], [], 0
    starts = None
    with evaluating(fit.model, fit.guide), seeded(seed, fit.device):
        if not model.discrete:
            starts = prior_starts(model, seed, fit.device)
        for start in range(0, len(data), size):
            x = ImageData.to_unit(data.images[start : start + size].to(fit.device))
            if starts is None:
                r = fit.guide.posterior(x).to_event(1)
                z = r.sample((draws,))
                log_weights = log_joint(model, x, z).double() - r.log_prob(z).double()
            else:
                log_weights, others = _log_weights(fit, x, starts, draws, widen, step)
                more += others
            values.append((log_weights.logsumexp(0) - math.log(draws)).cpu().numpy())
            pareto_k.append(_arviz.pareto_k(log_weights.T.cpu().numpy()))
    if more:
        warnings.warn(
            f"log likelihood: the posterior of {more} of {len(data)} images has more than {MODES} "
            "modes; theirs is too low by what the others hold",
            Notice,
            stacklevel=2,
        )
    return LogLikelihood(np.concatenate(values), np.concatenate(pareto_k), draws)


def _log_weights(
    fit: Fit, x: Tensor, starts: tuple[Tensor, Tensor], draws: int, widen: float, step: int
) -> tuple[Tensor, int]:
    """Log weights (S, B) of draws at the modes, and how many images have more modes."""
    model, latents = fit.model, fit.model.latent_size
    blocks, own = [], []
    for block in x.split(step):
        shape = (draws, len(block), latents)
        blocks.append(torch.randn(shape, dtype=torch.float64, device=x.device))
        if not isinstance(model.marginal, Normal):
            own.append(model.marginal.sample(shape[:2]).double())
    noise, of_prior = torch.cat(blocks, 1), torch.cat(own, 1) if own else None
    mean, parts, more = fit.guide.codes(x).loc, [], 0
    # Of each mode there is a covariance, with three more of its size, and mirror images.
    few = max(1, ROOM // (32 * MODES * latents * (latents + 2)))
    for n in range(0, len(x), few):
        some = slice(n, n + few)
        modes = find_modes(model, x[some], mean[some], starts)
        more += int(modes.more.sum())
        r = Proposal(modes, draws, widen)
        z = r.sample(noise[:, some], None if of_prior is None else of_prior[:, some])
        parts.append(log_joint(model, x[some], z.float()).double() - r.log_prob(z))
    return torch.cat(parts, 1), more


def prior_starts(model: VAE, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """128 draws of the prior (N, K), and the decoder's output of them."""
    with seeded(seed, device):
        drawn = model.marginal.expand((STARTS, model.latent_size)).sample()
    rows = max(1, ROOM // row_bytes(model))
    return drawn, torch.cat([model.decoder(few) for few in drawn.split(rows)])
