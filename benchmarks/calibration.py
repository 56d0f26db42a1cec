"""Are posteriors calibrated? Simulation-based calibration on a linear-Gaussian Normal-Gamma model.

    python benchmarks/calibration.py --out runs/calibration

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian inference algorithms
with simulation-based calibration", arXiv:1804.06788: latents are drawn from the prior and data from
the likelihood; among 99 posterior draws the rank of the true latent is then uniform on 0 to 99, if
the posterior is right. The model has two latents, of which one is seen well and one badly:

    precision_k ~ 0.3 Gamma(2, 4) + 0.7 Gamma(100, 25),   z_k ~ Normal(0, precision_k^-1/2),
    x ~ Normal(W z, 1),   W (6, 2) with orthogonal columns, so that W' x tells z_k to 0.3 and to 1.

Its exact posterior, which uses nothing of this package, is z_k on a grid, a mixture of two of
Student's t times a Normal, and then the precision, a mixture of two Gammas given z_k. The
contenders:

- ``exact``: that posterior, to see that the test passes what is right;
- ``half the noise``: the same as if the noise were half as large, to see that it fails;
- ``NUTS``: Pyro's, on the same density written with this package's prior, all data sets in one
  chain, whose posterior is the product of theirs; thinned, so that draws are nearly independent;
- ``NUTS, z alone``: the same over z with the package's marginal, and then the precision from its
  ``precision_given``;
- ``NormalGamma``, ``relaxed`` and ``mixture``: guides with the package's posteriors, their
  parameters from a network, trained with ``Trace_ELBO``. The first gives both parameters of its
  Gamma, the others slide and mix between two fixed ones, as in the package.

A row of the table is one latent of one contender: chi-square of 20 bins with its p-value, the
largest distance of the ECDF of the ranks from the uniform one with its bound for 99 % of uniform
samples, the z-score of the mean rank, and how many truths lie in the central 80 % of the draws.
If all 28 rows were uniform, one of them would have a p-value below 0.0004 once in 100 runs. Gap
is the mean KL to the posterior in nats, exact evidence less ELBO. The numbers are in
``calibration.json``, the table in ``table.md``, the histograms in ``calibration.png``.
"""

import argparse
import math
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.distributions import Normal
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from scipy import stats
from scipy.special import logsumexp
from torch import nn

from ngvae_pyro import runs
from ngvae_pyro.distributions import (
    NormalGamma,
    NormalGammaMixture,
    NormalGammaPrior,
    RelaxedNormalGammaMixture,
)
from ngvae_pyro.report import plots

LATENTS, PIXELS = 2, 6
PROBS, SLAB, SPIKE = 0.3, (2.0, 4.0), (100.0, 25.0)
# Standard deviation of what W' x tells of each z.
NOISE = np.array([0.3, 1.0])
DRAWS, BINS = 99, 20
# Of the guides: precisions of z given x between 4 and 12.5, for those two noises.
COMPONENTS = {"concentration": (100.0, 100.0), "rate": (8.0, 25.0)}
SHARPNESS = 10.0
QUANTITIES = ("z", "precision")


def mixing():
    """W, whose columns are orthogonal and of length 1 / noise."""
    generator = np.random.default_rng(0)
    columns, _ = np.linalg.qr(generator.standard_normal((PIXELS, LATENTS)))
    return columns / NOISE


W = mixing()


# The exact posterior, in numpy -------------------------------------------------------------------


def simulate(count, generator):
    """Truths {z, precision} (N, K) and data (N, D)."""
    slab = generator.random((count, LATENTS)) < PROBS
    a, b = (np.where(slab, *pair) for pair in zip(SLAB, SPIKE, strict=True))
    precision = generator.gamma(a) / b
    z = generator.standard_normal((count, LATENTS)) / np.sqrt(precision)
    x = z @ W.T + generator.standard_normal((count, PIXELS))
    return {"z": z, "precision": precision}, x


def log_students(z):
    """log weight and density of z under each component, (..., 2)."""
    parts = [
        math.log(weight) + stats.t(2 * a, scale=math.sqrt(b / a)).logpdf(z)
        for weight, (a, b) in ((PROBS, SLAB), (1 - PROBS, SPIKE))
    ]
    return np.stack(parts, -1)


def on_grid(told, noise):
    """Grid (N, G) and log p(z, told) on it, of what W' x tells of one latent."""
    low, high = np.minimum(told, 0) - 9 * noise, np.maximum(told, 0) + 9 * noise
    z = low[:, None] + np.linspace(0, 1, 2001) * (high - low)[:, None]
    return z, logsumexp(log_students(z), -1) + stats.norm(z, noise).logpdf(told[:, None])


def exact(x, generator, widen=1.0):
    """Draws {z, precision} (L, N, K) of the posterior, with the noise so many times as large."""
    found = {name: np.empty((DRAWS, len(x), LATENTS)) for name in QUANTITIES}
    for k, noise in enumerate(NOISE):
        told = x @ W[:, k] * noise**2
        grid, log_joint = on_grid(told, widen * noise)
        mass = np.exp(log_joint - log_joint.max(-1, keepdims=True))
        cdf = np.concatenate(
            (np.zeros((len(x), 1)), np.cumsum((mass[:, 1:] + mass[:, :-1]) / 2, -1)), -1
        )
        for n in range(len(x)):
            uniform = generator.random(DRAWS) * cdf[n, -1]
            found["z"][:, n, k] = np.interp(uniform, cdf[n], grid[n])
    z = found["z"]
    parts = log_students(z)
    slab = generator.random(z.shape) < np.exp(parts[..., 0] - logsumexp(parts, -1))
    a, b = (np.where(slab, *pair) for pair in zip(SLAB, SPIKE, strict=True))
    found["precision"] = generator.gamma(a + 0.5) / (b + z**2 / 2)
    return found


def log_evidence(x):
    """log p(x) of each data set, (N,)."""
    total = 0.0
    for k, noise in enumerate(NOISE):
        grid, log_joint = on_grid(x @ W[:, k] * noise**2, noise)
        step = grid[:, 1] - grid[:, 0]
        total = total + logsumexp(log_joint, -1) + np.log(step)
    # What of x no z explains is noise too: the rest of the Normal of x about W z.
    rest = (x**2).sum(-1) - sum((x @ W[:, k] * s) ** 2 for k, s in enumerate(NOISE))
    unseen = (PIXELS - LATENTS) / 2 * math.log(2 * math.pi)
    return total - rest / 2 - unseen + np.log(NOISE).sum()


# The same model and the guides, in Pyro ----------------------------------------------------------


def prior_of(x):
    """The package's prior, in the type of the data."""
    return NormalGammaPrior(x.new_full((LATENTS,), PROBS), slab=SLAB, spike=SPIKE)


def model(x):
    prior = prior_of(x)
    with pyro.plate("data", len(x)):
        precision = pyro.sample("precision", prior.precision.to_event(1))
        z = pyro.sample("z", prior.conditional(precision).to_event(1))
        pyro.sample("x", Normal(z @ torch.from_numpy(W.T).to(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """The parameters of a posterior from two hidden layers."""

    def __init__(self, family):
        super().__init__()
        self.family = family
        outputs = LATENTS * (3 if family == "NormalGamma" else 2)
        sizes = (PIXELS, 64, 64)
        layers = [nn.Sequential(nn.Linear(i, o), nn.SiLU()) for i, o in pairwise(sizes)]
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def posterior(self, x):
        loc, *others = self.network(x).chunk(self.network[-1].out_features // LATENTS, -1)
        if self.family == "NormalGamma":
            concentration, rate = (other.exp() for other in others)
            return NormalGamma(loc, 5.0 * concentration, rate)
        if self.family == "relaxed":
            return RelaxedNormalGammaMixture(
                loc, logits=others[0], **COMPONENTS, sharpness=SHARPNESS
            )
        return NormalGammaMixture(loc, logits=others[0], **COMPONENTS)

    def forward(self, x):
        pyro.module("guide", self)
        q = self.posterior(x)
        with pyro.plate("data", len(x)):
            if self.family == "mixture":
                z = pyro.sample("z", q.marginal.to_event(1))
                pyro.sample("precision", q.precision_given(z).to_event(1))
                return
            precision = pyro.sample("precision", q.precision.to_event(1))
            pyro.sample("z", q.conditional(precision).to_event(1))


def trained(family, steps, generator):
    """A guide, on new data at every step."""
    guide = Guide(family)
    optimizer = ClippedAdam({"lr": 5e-3, "lrd": 0.01 ** (1 / steps), "clip_norm": 10.0})
    svi = SVI(model, guide, optimizer, loss=Trace_ELBO())
    for _ in range(steps):
        _, x = simulate(256, generator)
        svi.step(torch.from_numpy(x).float())
    return guide


@torch.no_grad()
def amortised(family, steps, x, generator):
    """Draws of a guide, and its mean gap in nats with the standard error."""
    with pyro.get_param_store().scope():
        guide = trained(family, steps, generator)
        images = torch.from_numpy(x).float()
        draws = guide.posterior(images).sample((DRAWS,)).double().numpy()
        elbo = np.array([-Trace_ELBO().loss(model, guide, images) / len(x) for _ in range(50)])
    gap = log_evidence(x).mean() - elbo
    return {"z": draws[..., 0], "precision": draws[..., 1]}, (gap.mean(), gap.std() / 50**0.5)


def nuts(x, warm_up, thin):
    """Draws of Pyro's NUTS, over z and the logarithm of the precision."""
    x, mix = torch.from_numpy(x), torch.from_numpy(W.T)
    prior = prior_of(x)

    def potential(free):
        z, log_precision = free["z"], free["log_precision"]
        log_prior = prior.log_prob(torch.stack((z, log_precision.exp()), -1)) + log_precision
        return 0.5 * (x - z @ mix).square().sum() - log_prior.sum()

    told = x @ mix.T * torch.from_numpy(NOISE) ** 2
    start = {"z": told, "log_precision": torch.zeros_like(told)}
    chain = MCMC(
        NUTS(potential_fn=potential, max_tree_depth=7),
        *(DRAWS * thin, warm_up),
        initial_params=start,
        disable_progbar=True,
    )
    chain.run()
    found = {name: values[::thin].numpy() for name, values in chain.get_samples().items()}
    return {"z": found["z"], "precision": np.exp(found["log_precision"])}


def nuts_of_z(x, warm_up, thin):
    """Draws of Pyro's NUTS over z, the precision integrated out, and of the precision given z."""
    x, mix = torch.from_numpy(x), torch.from_numpy(W.T)
    prior = prior_of(x)

    def potential(free):
        log_prior = prior.marginal.log_prob(free["z"]).sum()
        return 0.5 * (x - free["z"] @ mix).square().sum() - log_prior

    start = {"z": x @ mix.T * torch.from_numpy(NOISE) ** 2}
    kernel = NUTS(potential_fn=potential, max_tree_depth=7)
    chain = MCMC(kernel, DRAWS * thin, warm_up, initial_params=start, disable_progbar=True)
    chain.run()
    z = chain.get_samples()["z"][::thin]
    return {"z": z.numpy(), "precision": prior.precision_given(z).sample().numpy()}


# Ranks -------------------------------------------------------------------------------------------


def ranks(truth, draws):
    """How many draws are below the truth, 0 to L, (N,)."""
    return (draws < truth).sum(0)


def distance(counts):
    """Largest distance of the ECDF of ranks from the uniform one; counts (..., L + 1)."""
    total = counts.sum(-1, keepdims=True)
    uniform = np.arange(1, DRAWS + 2) / (DRAWS + 1)
    return np.abs(np.cumsum(counts, -1) / total - uniform).max(-1)


def judged(rank, generator):
    """A row of the table."""
    count = len(rank)
    bins = np.bincount(rank * BINS // (DRAWS + 1), minlength=BINS)
    chi = stats.chisquare(bins)
    uniform = generator.multinomial(count, np.full(DRAWS + 1, 1 / (DRAWS + 1)), 4000)
    inside = (rank >= (DRAWS + 1) // 10) & (rank < (DRAWS + 1) * 9 // 10)
    return {
        "chi2": float(chi.statistic),
        "p": float(chi.pvalue),
        "ecdf": float(distance(np.bincount(rank, minlength=DRAWS + 1))),
        "ecdf_99": float(np.quantile(distance(uniform), 0.99)),
        "z": float(((rank + 0.5) / (DRAWS + 1) - 0.5).mean() * math.sqrt(12 * count)),
        "inside_80": float(inside.mean()),
        "bins": bins.tolist(),
    }


def table(found):
    lines = [
        "| posterior | latent | chi2 (19) | p | ECDF (99 %) | mean rank, z | in 80 % | gap |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, entry in found.items():
        gap = "-" if entry["gap"] is None else "{:.3f} ± {:.3f}".format(*entry["gap"])
        for latent, r in entry["rows"].items():
            cells = [f"{name}, {entry['sets']} sets", latent, f"{r['chi2']:.1f}", f"{r['p']:.2g}"]
            cells += [f"{r['ecdf']:.3f} ({r['ecdf_99']:.3f})", f"{r['z']:+.1f}"]
            lines.append("| " + " | ".join([*cells, f"{r['inside_80']:.0%}", gap]) + " |")
    return "\n".join(lines)


def figure(path, found):
    """Histograms of the ranks, with the band of 99 % of a uniform bin."""
    latents = next(iter(found.values()))["rows"]
    with plots.new_figure(path, 2.4 * len(latents) + 0.8, 1.35 * len(found)) as fig:
        axes = fig.subplots(len(found), len(latents), sharex=True, squeeze=False)
        edges = np.linspace(0, DRAWS + 1, BINS + 1)
        for line, (name, entry) in zip(axes, found.items(), strict=True):
            band = stats.binom(entry["sets"], 1 / BINS).ppf([0.005, 0.995])
            for ax, (latent, row) in zip(line, entry["rows"].items(), strict=True):
                ax.grid(False)
                ax.axhspan(*band, color=plots.UNINFORMATIVE, alpha=0.5, lw=0)
                ax.stairs(row["bins"], edges, color=plots.INFORMATIVE, lw=1.4)
                ax.set_ylim(0, 1.1 * max(*row["bins"], band[1]))
                if ax in axes[0]:
                    ax.set_title(latent, fontsize=10)
            line[0].set_ylabel(f"{name}\n(sets)", fontsize=9)
        for ax in axes[-1]:
            ax.set_xlabel("rank of the truth")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=2000, help="data sets of each contender")
    parser.add_argument("--nuts-sets", type=int, default=300)
    parser.add_argument("--steps", type=int, default=3000, help="of training a guide")
    parser.add_argument("--warm-up", type=int, default=200, help="of NUTS")
    parser.add_argument("--thin", type=int, default=3, help="of NUTS")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(words.seed)
    pyro.enable_validation(False)
    generator = np.random.default_rng(words.seed)
    truth, x = simulate(words.sets, generator)
    few = slice(0, words.nuts_sets)
    contenders = {
        "exact": lambda: (exact(x, generator), None),
        "half the noise": lambda: (exact(x, generator, widen=0.5), None),
        "NUTS": lambda: (nuts(x[few], words.warm_up, words.thin), None),
        **{
            family: lambda family=family: amortised(family, words.steps, x, generator)
            for family in ("NormalGamma", "relaxed", "mixture")
        },
        "NUTS, z alone": lambda: (nuts_of_z(x[few], words.warm_up, words.thin), None),
    }
    found = {}
    for name, draw in contenders.items():
        began = time.perf_counter()
        draws, gap = draw()
        sets = draws["z"].shape[1]
        rows = {
            f"{'z' if q == 'z' else 'precision of z'}{k + 1}, noise {NOISE[k]}": judged(
                ranks(truth[q][:sets, k], draws[q][..., k]), generator
            )
            for k in range(LATENTS)
            for q in QUANTITIES
        }
        seconds = time.perf_counter() - began
        found[name] = {"sets": sets, "gap": gap, "seconds": seconds, "rows": rows}
        print(f"{name}: {seconds:.0f} s", flush=True)
    words.out.mkdir(parents=True, exist_ok=True)
    runs.write_json(words.out / "calibration.json", found)
    text = table(found)
    (words.out / "table.md").write_text(text + "\n")
    figure(words.out / "calibration.png", found)
    print(text)


if __name__ == "__main__":
    main()
