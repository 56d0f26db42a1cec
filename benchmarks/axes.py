"""Is each latent one factor? The same training before and after the rotation of its axes.

    python benchmarks/axes.py --out runs/axes --cases seeds
    python benchmarks/axes.py --out runs/axes --cases subsets kinds

trains the default pair, scores the informative latents as they would be without the rotation (made
uncorrelated where that is free, as in earlier versions) and at the end of the training, both on
10,000 images that were not trained on, and prints a Markdown table. ``seeds`` are ten of the full
sprites that had no part in any choice, ``subsets`` some of its factors, ``kinds`` images of other
renderers (:mod:`kinds`), of which rectangles, rings and shapes have 64x64 pixels, ``vectors`` four
uniform sources in 20 columns, with what FastICA finds in the vectors themselves. A case that is in
the folder already is read and not trained again. Factors are matched by |correlation|; a factor
that is a circle, such as an angle, has no latent that follows it.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import kinds
import numpy as np
import torch
from sklearn.decomposition import FastICA

from ngvae_pyro import axes, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.evaluation import diagnostics, metrics
from ngvae_pyro.fitted import locs
from ngvae_pyro.training import actions
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.variants import run_spec

TRAINED, SCORED = 22_000, 10_000
VECTORS, SOURCES, COLUMNS_OF_VECTORS = 7_000, 4, 20
CASES = {
    "seeds": [("sprites", seed) for seed in range(400, 410)],
    "subsets": [
        ("sprites:x,size,red,background", 410),
        ("sprites:x,y,size", 411),
        ("sprites:red,green,blue,background", 412),
        ("sprites:x,y,size,green,blue", 413),
    ],
    "vectors": [("vectors", seed) for seed in (420, 421)],
    "kinds": [(kind, 97) for kind in sorted(set(kinds.KINDS) - {"three_grey"})],
}
SCORES = {
    "MIG": metrics.mig,
    "FactorVAE": metrics.factor_vae_score,
    "SAP": metrics.sap,
    "MCC": metrics.mcc,
}
COLUMNS = ("informative", "true", "ELBO", "cost", "outcome", *SCORES, "DCI d")


class Watched:
    """The codes of images as they would be without the rotation."""

    test: ImageData
    before: np.ndarray | None


rotate = actions.Rotate.apply


def watched(action, trainer):
    """:meth:`Rotate.apply`, which keeps the codes that earlier versions would have had."""
    # They made latents no more than uncorrelated, where that is free.
    state, find = trainer.state(), axes.find
    axes.find = lambda codes: (
        None if (found := find(codes)) is None else replace(found, change=found.uncorrelated)
    )
    rotate(action, trainer)
    axes.find = find
    Watched.before = locs(trainer.fit, Watched.test).cpu().numpy().astype(float)
    trainer.set_state(state)
    rotate(action, trainer)


def images_of(name, count, seed, form=None):
    """Images of a case, and how many numbers describe one."""
    if name.startswith("sprites"):
        vary = tuple(name.partition(":")[2].split(",")) if ":" in name else None
        data = sprites(count, seed=seed, **({} if vary is None else {"vary": vary}))
        return data, len(vary or data.factor_names)
    if name == "vectors":
        return vectors(min(count, VECTORS), seed, form), SOURCES
    images, factors = kinds.render(name, count, seed)
    values = np.stack(list(factors.values()), 1)
    data = ImageData(name, images, factors=values, factor_names=tuple(factors))
    return data, kinds.KINDS[name][-1]


def vectors(count, seed, form):
    """Uniform sources under a linear map, with noise of a tenth of their spread, in hundreds."""
    # One map for what is trained on and what is scored.
    map_random, random = np.random.default_rng(seed % 1000), np.random.default_rng(seed)
    map_to = map_random.standard_normal((SOURCES, COLUMNS_OF_VECTORS))
    sources = random.uniform(-1.0, 1.0, (count, SOURCES))
    signal = sources @ map_to
    rows = 100.0 * (signal + 0.1 * signal.std(0) * random.standard_normal(signal.shape))
    names = tuple(f"source {k}" for k in range(SOURCES))
    return ImageData("vectors", rows, factors=sources, factor_names=names, form=form)


def fast_ica(train, test):
    """MCC of FastICA on the vectors themselves, which is told how many sources there are."""
    ica = FastICA(SOURCES, whiten="unit-variance", random_state=0, max_iter=1000)
    ica.fit(train.images.flatten(1).numpy())
    codes = ica.transform(test.images.flatten(1).numpy())
    return float(metrics.mcc(codes, np.asarray(test.factors, float)))


def scores(codes, factors):
    return {name: float(score(codes, factors)) for name, score in SCORES.items()}


def run(name, seed, steps):
    """What is found on one data set."""
    changes = {"fit": {"seed": seed} | ({"steps": steps} if steps else {})}
    spec = run_spec("normal_gamma", "relaxed", changes, "benchmark")
    data, true = images_of(name, TRAINED, seed)
    # In the units of what is trained on.
    Watched.test, _ = images_of(name, SCORED, seed + 1000, data.form)
    Watched.before = None
    train, held_out = data.split(2000, seed)
    fit = svi.fit(*runs.load_pair(spec, train), train, spec.fit, progress=False)
    found = diagnostics.evaluate(fit, held_out, seed)
    latents = [k for k, p in enumerate(found["probs"]) if p > 0.5]
    factors = np.asarray(Watched.test.factors, float)
    result = {
        "informative": len(latents),
        "true": true,
        "ELBO": found["elbo"],
        "cost": fit.rotation.cost if fit.rotation else None,
        "outcome": fit.rotation.outcome if fit.rotation else None,
        "agreement": fit.rotation.agreement if fit.rotation else None,
        "negentropy": fit.rotation.negentropy if fit.rotation else None,
    }
    if len(latents) > 1 and Watched.before is not None:
        result["before"] = scores(Watched.before[:, latents], factors)
        codes = locs(fit, Watched.test).cpu().numpy().astype(float)[:, latents]
        result["after"] = scores(codes, factors)
        result["after"]["DCI d"] = float(metrics.dci(codes, factors).disentanglement)
    if name == "vectors":
        result["FastICA"] = fast_ica(train, Watched.test)
    return result


def cell(result, column):
    if column in SCORES or column == "DCI d":
        values = [result.get(when, {}).get(column) for when in ("before", "after")]
        return " → ".join(f"{value:.2f}" for value in values if value is not None) or "-"
    value = result[column]
    if isinstance(value, float):
        return f"{value:.3f}" if column == "cost" else f"{value:.1f}"
    return "-" if value is None else str(value)


def table(results):
    """One line a case, and the mean and the standard deviation of what is scored."""
    lines = ["| images | seed | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---|---:|" + "---:|" * len(COLUMNS))
    for (name, seed), result in results.items():
        cells = [cell(result, column) for column in COLUMNS]
        lines.append(f"| {name} | {seed} | " + " | ".join(cells) + " |")
    for when in ("before", "after"):
        means = []
        for column in (*SCORES, "DCI d"):
            values = [r[when][column] for r in results.values() if column in r.get(when, {})]
            if len(values) > 1:
                spread = statistics.stdev(values)
                means.append(f"{column} {statistics.mean(values):.3f} ± {spread:.3f}")
        lines.append(f"\n{when}: " + ", ".join(means))
    told = [f"{r['FastICA']:.4f}" for r in results.values() if "FastICA" in r]
    if told:
        own = [f"{r['after']['MCC']:.4f}" for r in results.values()]
        lines.append(f"\nMCC {', '.join(own)}; FastICA on the vectors: {', '.join(told)}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--only", nargs="+", default=None, help="names of data sets")
    parser.add_argument("--steps", type=int, default=None, help="default: the declared steps")
    words = parser.parse_args()
    torch.set_num_threads(1)
    actions.Rotate.apply = watched
    words.out.mkdir(parents=True, exist_ok=True)
    for group in words.cases:
        results = {}
        for name, seed in CASES[group]:
            if words.only and name not in words.only:
                continue
            path = words.out / f"{name.replace(':', '-').replace(',', '_')}-{seed}.json"
            if not path.exists():
                runs.write_json(path, run(name, seed, words.steps))
            results[name, seed] = json.loads(path.read_text())
            last = {(name, seed): results[name, seed]}
            print(table(last).splitlines()[2], flush=True)
        print(f"\n### {group}\n\n{table(results)}\n", flush=True)


if __name__ == "__main__":
    main()
