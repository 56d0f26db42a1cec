"""Are the posteriors of trained pairs as wide as they should be? Coverage, and NUTS beside them.

    ngvae train normal_gamma fixed --data sprites --out runs/fixed
    ngvae train normal_gamma relaxed --data sprites --out runs/relaxed
    python benchmarks/posteriors.py runs/fixed runs/relaxed --out runs/posteriors

On held-out images, of the informative latents, q(z | x) is held against Pyro's NUTS on z with the
model's decoder and likelihood and its prior of these latents, z_k ~ Normal(0, 1), one chain over
all images, whose posterior is the product of theirs, begun at the means of q:

- *Width*. The standard deviation of q(z_k | x), divided by that of NUTS.
- *Coverage*. The share of NUTS' draws in the central 50 % and 80 % of q(z_k | x). A posterior that
  is wide enough and beside the place has too little of it.

A guide with precisions that are constant over images can be right on average, and not for each
image; the quantiles of the ratio show that. The numbers are in ``posteriors.json``, the table in
``table.md``.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.distributions import Normal
from pyro.infer import MCMC, NUTS

from ngvae_pyro import runs
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError

DRAWS, WARM_UP, DEPTH = 300, 200, 8
# Draws of q(z | x*) from which its intervals are taken.
POSTERIOR_DRAWS = 999
INTERVALS = (0.5, 0.8)


@torch.no_grad()
def coverage(q, exact):
    """Shares of draws (S, N, K) that lie in the central intervals of draws of q, (L, N, K)."""
    shares = {}
    for share in INTERVALS:
        low, high = q.quantile(0.5 - share / 2, dim=0), q.quantile(0.5 + share / 2, dim=0)
        shares[f"{share:.0%}"] = ((low < exact) & (exact < high)).double().mean().item()
    return shares


def nuts(fit, x, start, draws, warm_up):
    """Draws (S, N, K) of z given each image, and R-hat (N, K) of the two halves of the chain."""
    decoder, likelihood = fit.model.decoder, fit.model.likelihood

    def potential(free):
        z = free["z"]
        return -likelihood(decoder(z)).log_prob(x).sum() - Normal(0.0, 1.0).log_prob(z).sum()

    kernel = NUTS(potential_fn=potential, max_tree_depth=DEPTH)
    chain = MCMC(kernel, draws, warm_up, initial_params={"z": start}, disable_progbar=True)
    with evaluating(fit.model, fit.guide):
        for parameter in fit.model.parameters():
            parameter.requires_grad_(False)
        chain.run()
    z = chain.get_samples()["z"]
    halves = torch.stack(z.split(draws // 2)[:2])
    within, between = halves.var(1).mean(0), halves.mean(1).var(0)
    return z, ((within + between) / within).sqrt()


def measure(folder, arguments):
    fit, spec = runs.load_run(folder, "cpu")
    if fit.model.likelihood.family != "gaussian" or getattr(spec.model.prior, "joint", False):
        raise UserError(f"{folder}: expected a gaussian likelihood, and z ~ Normal(0, 1)")
    _, held_out = runs.load_data(spec)
    pyro.set_rng_seed(arguments.seed)
    x = ImageData.to_unit(held_out.images[: arguments.images])
    with torch.no_grad(), evaluating(fit.model, fit.guide):
        codes = fit.guide.codes(x)
        _, q = fit.guide.draws(x, POSTERIOR_DRAWS)
    exact, r_hat = nuts(fit, x, codes.loc, arguments.draws, arguments.warm_up)
    q, exact, r_hat = (a[..., codes.informative] for a in (q, exact, r_hat))
    ratio = q.std(0) / exact.std(0)
    quantiles = np.quantile(ratio.numpy(), [0.1, 0.5, 0.9])
    return {
        "informative": int(codes.informative.sum()),
        "scale": fit.model.likelihood.scale,
        "coverage": coverage(q, exact),
        "width": dict(zip(("10 %", "median", "90 %"), map(float, quantiles), strict=True)),
        "beside": ((q.mean(0) - exact.mean(0)).abs() / exact.std(0)).median().item(),
        "precision": {
            "q": (1 / q.var(0)).mean(0).tolist(),
            "nuts": (1 / exact.var(0)).mean(0).tolist(),
        },
        "r_hat": r_hat.quantile(0.95).item(),
    }


def table(found):
    lines = [
        "| run | informative | in 50 % | in 80 % | width against NUTS: median (10 to 90 %) "
        "| mean beside NUTS', in its standard deviations | R-hat, 95 % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, r in found.items():
        low, middle, high = r["width"].values()
        shares = " | ".join(f"{share:.0%}" for share in r["coverage"].values())
        lines.append(
            f"| {name} | {r['informative']} | {shares} | {middle:.2f} ({low:.2f} to {high:.2f}) "
            f"| {r['beside']:.2f} | {r['r_hat']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--draws", type=int, default=DRAWS, help="of NUTS")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="of NUTS")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {str(folder): measure(folder, arguments) for folder in arguments.runs}
    (arguments.out / "posteriors.json").write_text(json.dumps(found, indent=1))
    (arguments.out / "table.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
