"""How much of a batch latents carry, with and without it as a covariate.

    python benchmarks/covariates.py

2,000 cells of 200 genes and three programmes, in two batches with a factor of its own for each
gene (``shift``, the standard deviation of its logarithm) and, with ``interaction``, programmes that
act otherwise in the second. Prints a row for each of docs/covariates.md.
"""

import argparse

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import cross_val_score

import ngvae_pyro as ng
from ngvae_pyro.evaluation import diagnostics


def cells(interaction, shift=0.7, count=2000, genes=200, programmes=3):
    """Counts (N, D), the batch of each (N,), and the programmes (N, 3)."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, programmes))
    batch = rng.integers(0, 2, count)
    size = (programmes, genes)
    loadings = 0.6 * rng.normal(size=size) * (rng.random(size) < 0.4)
    base = rng.normal(size=genes)
    shifts = shift * rng.normal(size=genes)
    others = loadings * (1 + interaction * rng.normal(size=size))
    logits = base + np.where(batch[:, None] == 1, z @ others + shifts, z @ loadings)
    share = np.exp(logits)
    share /= share.sum(1, keepdims=True)
    mean = share * rng.lognormal(np.log(2000), 0.3, count)[:, None]
    return rng.poisson(rng.gamma(5.0, mean / 5.0)), batch, z


def row(fit, data, batch, z):
    """What the latents that are informative tell of the batch, and of the programmes."""
    codes = diagnostics.codes(fit, data)
    loc = codes.loc[:, codes.informative].numpy()
    linear = cross_val_score(LogisticRegression(), loc, batch, cv=5).mean()
    forest = RandomForestClassifier(100, random_state=0)
    return {
        "latents": loc.shape[1],
        "correlation": np.abs(np.corrcoef(loc.T, batch)[-1, :-1]).max(),
        "linear": linear,
        "forest": cross_val_score(forest, loc, batch, cv=3).mean(),
        "silhouette": silhouette_score(loc, batch),
        "R2 of programmes": LinearRegression().fit(loc, z).score(loc, z),
        "ELBO": ng.evaluate(fit, data)["elbo"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args().steps
    for interaction in (0.0, 0.7):
        counts, batch, z = cells(interaction)
        for covariates in (None, {"batch": np.array(["a", "b"])[batch]}):
            data = ng.ImageData.counts("cells", counts, covariates=covariates)
            torch.manual_seed(0)
            family = {"family": "negative_binomial"}
            model = ng.load_model("normal_gamma", data, latent_size=8, likelihood=family)
            guide = ng.load_guide("relaxed", model)
            fit = ng.fit(model, guide, data, steps=steps, seed=0, progress=False)
            found = {
                name: round(float(value), 3) for name, value in row(fit, data, batch, z).items()
            }
            print(f"interaction {interaction}, covariates {covariates is not None}: {found}")


if __name__ == "__main__":
    main()
