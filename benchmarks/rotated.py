"""Is it the rotation alone? The axes of the NG-VAE's training, found in other models afterwards.

    python benchmarks/rotated.py runs/comparison --seeds 60 --out runs/rotated
    python benchmarks/rotated.py runs/comparison --seeds 60 --out runs/rotated --manifold

reads the finished runs of an ``ngvae compare`` folder and trains nothing. In each model that was
not rotated in training it finds the independent axes of the informative latents, as training does:
without labels, of the posterior means of at most 20,000 training images (:func:`axes.find`). They
are folded into a copy of the networks, and what ``ngvae evaluate`` measures is measured again, on
the same images. The Markdown tables have a column for each model and one for its rotated copy; a
pair that is not there is skipped with a line. Runs that are in ``--out`` already are read.

Posterior means and reconstructions at them rotate exactly, but a rotated posterior is no longer
factorised where its variances differ. The head's rows for the log variance are fitted by least
squares, over the training images, which is the best in these squares that a linear head can do, to
that of a factorised one by either of two rules (:func:`rotated_variance`): the ``marginal``
variances, or those of the ``nearest`` one, which has the least KL to the rotated posterior in the
direction that an ELBO has. Both costs are shown, nats of the held-out ELBO with ten draws an image;
the rotated column is by the rule that is cheaper on 2,000 training images. Nothing but variances
depends on the rule. Where latents are correlated the change is no rotation alone: it makes them
uncorrelated too, which the prior does not take for the same, and the log likelihood changes.

``--manifold`` instead embeds 3,000 sprites in seven dimensions, as Horan, Richardson and Weiss
(2021), by Hessian eigenmaps and by Isomap on 200 principal components, and turns the embedding by
the same search; with them are the first seven components, and the NG-VAE's informative latents.
Hessian eigenmaps need more than d (d + 3) / 2 = 35 neighbours in d = 7 dimensions, and have 60;
images that are among the neighbours of none are left out of theirs, because each would have a
dimension of its own.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pyro
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import Isomap, LocallyLinearEmbedding
from sklearn.neighbors import kneighbors_graph

from ngvae_pyro import axes, evaluation, runs
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data import sources as data
from ngvae_pyro.data.images import ImageData, known_count
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics, metrics
from ngvae_pyro.fitted import locs, site_terms
from ngvae_pyro.guide import GaussianGuide, NormalGammaGuide, recombine
from ngvae_pyro.machine import seeded
from ngvae_pyro.report import table
from ngvae_pyro.training.actions import LOOK_AT

NG = "normal_gamma+relaxed"
PAIRS = (
    *("gaussian+gaussian", "gaussian+beta_27", "gaussian+beta_150", "gaussian+beta_tc"),
    *("gaussian+factor", NG),
)
RULES = ("marginal", "nearest")
# Draws of z an image, and training images by which the rule is chosen.
DRAWS, CHOOSING = 10, 2_000
# Of --manifold.
IMAGES, COMPONENTS, DIMENSIONS = 3_000, 200, 7
# Of Hessian eigenmaps, which need 36, and of Isomap, whose shortest paths need few.
NEIGHBOURS, FEW = 60, 12

COSTS = tuple(
    table.Metric(
        *(rule, f"Cost of folding, {rule} variances", "nats", table.FIT, f"fold.{rule}", None),
        *(".1f", "ELBO before less ELBO after"),
    )
    for rule in RULES
)
KL = table.Metric(
    *("kl", "KL of z", "nats", table.FIT, "metrics.kl.z.total", None, ".1f"), "of held-out images"
)
# The rows: those of METRICS that are of the model, and what folding in costs.
LEFT_OUT = ("k_bad", "seconds")
ROWS = tuple(
    row
    for metric in table.METRICS
    if metric.key not in LEFT_OUT
    for row in ((metric, *COSTS, KL) if metric.key == "elbo" else (metric,))
)


# Folding ---------------------------------------------------------------------------------------


def rotated_variance(variance, change, rule):
    """The variances of a factorised posterior of the rotated latents, (N, M).

    Args:
        variance: Of the posterior before, sigma^2 (N, M).
        change: A (M, M), z' = A z.
        rule: ``marginal``: sum_j A_kj^2 sigma_j^2. ``nearest``: of all factorised Gaussians q' the
            one with the least KL(q' || rotated q), 1 / sum_j (A^-1)_jk^2 sigma_j^-2.
    """
    if rule == "marginal":
        return variance @ change.square().T
    return 1.0 / ((1.0 / variance) @ torch.linalg.inv(change).square())


@torch.no_grad()
def features(fit, images):
    """What the encoder's head takes, of every image, (N, F)."""
    with evaluating(fit.guide):
        return torch.cat(
            [fit.guide.encoder.through_trunk(x) for x in diagnostics.batches(fit, images)]
        )


@torch.no_grad()
def fold_variances(guide, inputs, latents, target):
    """Bring the log variances that a head gives as near to a target as it can, in place.

    Rows and biases change by what has the least squares, over the images, of what is left: the best
    in these squares that a linear head can do. The variances of other latents stay.

    Args:
        guide: Its encoder's head gives loc first and log variance second.
        inputs: What the head takes of each image, (N, F).
        latents: Indices k, shape (M,).
        target: Log variances (N, M).

    Returns:
        The root mean square of what is left.
    """
    head, rows = guide.encoder.head, latents + guide.latent_size
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    current = design[:, :-1] @ head.weight[rows].double().T + head.bias[rows].double()
    # Of the difference, so that what needs no change has none, even where features are dependent.
    change = torch.linalg.lstsq(design, target.double() - current).solution
    head.weight[rows] += change[:-1].T.float()
    head.bias[rows] += change[-1].float()
    left = target - current - design @ change
    return float(left.square().mean().sqrt())


@torch.no_grad()
def folded(fit, latents, change, rule, inputs):
    """A copy of a fit with its axes changed, and the misfit of its log variances (0 without)."""
    fit = copy.deepcopy(fit)
    misfit = 0.0
    if isinstance(fit.guide, GaussianGuide):
        with evaluating(fit.guide):
            log_variance = fit.guide.encoder.head(inputs).chunk(2, -1)[1][:, latents]
        target = rotated_variance(log_variance.double().exp(), change.double(), rule).log()
        misfit = fold_variances(fit.guide, inputs, latents, target)
    recombine(fit.guide.encoder, fit.model.decoder, latents, change)
    return fit, misfit


@torch.no_grad()
def elbos(fit, images, seed):
    """The ELBO of each image, mean of ten draws, (N,)."""
    parts = []
    looks = evaluating(fit.model, fit.guide)
    with looks, seeded(seed, fit.device), pyro.get_param_store().scope():
        for x in diagnostics.batches(fit, images):
            draws = [site_terms(fit.model, fit.guide, x) for _ in range(DRAWS)]
            parts.append(
                sum(terms - sum(kl.sum(-1) for kl in sites.values()) for terms, sites in draws)
            )
    return torch.cat(parts).double() / DRAWS


# One run ---------------------------------------------------------------------------------------


def measured(fit, spec, held_out, seed):
    """The rows of the tables: as ``ngvae compare`` has them, the ELBO with ten draws an image."""
    found = diagnostics.evaluate(fit, held_out, seed)
    assessed = evaluation.assess(fit, spec, held_out, found["kl"]["z"]["per_latent"])
    kept = {key: assessed[key] for key in assessed if key not in ("per_image", "aggregate")}
    elbo = float(elbos(fit, held_out, seed).mean())
    return {"metrics": {**found, "elbo": elbo}, "evaluation": kept}


def run(folder):
    """A run as it is and, if it was not rotated in training, with its axes folded in."""
    fit, spec = runs.load_run(folder, "cpu")
    seed, label = spec.fit.seed, spec.guide.label or f"{spec.model_name}+{spec.guide_name}"
    train, held_out = runs.run_images(folder, spec, fit.device)
    # Not the run's own evaluation, which another version may have made.
    result = {"label": label, "before": measured(fit, spec, held_out, seed)}
    if fit.rotation is not None:
        return {**result, "rotated": f"in training: {fit.rotation}"}
    if not isinstance(fit.guide, (GaussianGuide, NormalGammaGuide)):
        return {**result, "rotated": "no: its posterior is not Gaussian"}
    probs = torch.tensor(result["before"]["metrics"]["probs"])
    latents = (probs > 0.5).nonzero().flatten()
    images = train.subset(slice(0, LOOK_AT))
    codes = locs(fit, images)[:, latents].double().numpy()
    if len(latents) < 2 or (found := axes.find(codes)) is None:
        return {**result, "rotated": "no: its informative latents have no axes"}
    change = torch.tensor(found.change, dtype=torch.float32)
    inputs = features(fit, images)
    copies = {rule: folded(fit, latents, change, rule, inputs) for rule in RULES}
    few = images.subset(slice(0, CHOOSING))
    on_train = {rule: float(elbos(copies[rule][0], few, seed).mean()) for rule in RULES}
    own, cost, error = elbos(fit, held_out, seed), {}, {}
    for rule in RULES:
        lost = own - elbos(copies[rule][0], held_out, seed)
        cost[rule] = float(lost.mean())
        error[rule] = float(lost.std() / len(lost) ** 0.5)
    rule = max(RULES, key=lambda rule: on_train[rule])
    return {
        **result,
        "rotated": "afterwards",
        "after": measured(copies[rule][0], spec, held_out, seed),
        "rule": rule,
        "cost": cost,
        "cost_error": error,
        "misfit": {rule: copies[rule][1] for rule in RULES},
        "latents": latents.tolist(),
        "change": found.change.tolist(),
        "negentropy": axes.negentropy(found(codes)).tolist(),
        "agreement": axes.agreement(found(codes)).tolist(),
    }


def known(path, work):
    """The JSON of a path, made if it is not there."""
    if not path.exists():
        runs.write_json(path, work())
    return json.loads(path.read_text())


# Tables ----------------------------------------------------------------------------------------


def comparison(results, command):
    """What :func:`table.markdown` takes, of the results of each pair."""
    columns, labels = {}, {}
    for pair, of_pair in results.items():
        labels[pair] = of_pair[0]["label"]
        columns[pair] = [result["before"] for result in of_pair]
        if after := [r["after"] | {"fold": r["cost"]} for r in of_pair if "after" in r]:
            labels[f"{pair}, rotated"] = f"{labels[pair]}, rotated"
            columns[f"{pair}, rotated"] = after
    factors = next(iter(columns.values()))[0]["evaluation"].get("factors")
    return {
        "command": command,
        "models": [{"pair": pair, "label": label} for pair, label in labels.items()],
        "metrics": table.describe(ROWS),
        "values": table.summarise(columns, known_count(factors), ROWS),
    }


def details(results):
    """A line for each run: what was rotated, how surely, by which rule, at which cost."""
    for pair, of_pair in results.items():
        for seed, result in of_pair.items():
            text = f"{pair}, seed {seed}: rotated {result['rotated']}"
            if "after" in result:
                costs = ", ".join(
                    f"{rule} {result['cost'][rule]:.2f} ± {result['cost_error'][rule]:.2f} nats "
                    f"(log variance off by {result['misfit'][rule]:.3f})"
                    for rule in RULES
                )
                sure = result["agreement"]
                text += f", {len(result['latents'])} latents, agreement of bootstrap samples "
                text += f"{min(sure):.2f} to {max(sure):.2f}; {costs}; column by {result['rule']}"
            yield f"- {text}"


# Manifolds -------------------------------------------------------------------------------------

SCORES = {
    "MCC": metrics.mcc,
    "MCC, ranks": lambda codes, factors: metrics.mcc(codes, factors, rank=True),
    "MIG": metrics.mig,
    "FactorVAE": metrics.factor_vae_score,
    "SAP": metrics.sap,
}


def scores(codes, factors):
    return {name: float(score(codes, factors)) for name, score in SCORES.items()}


def hessian(x):
    """Hessian eigenmaps of points (N, D), and which points they are of.

    A point that is no other's neighbour is in no equation, so that what is 1 there and 0 elsewhere
    is a perfect coordinate.
    """
    used = np.arange(len(x))
    while True:
        graph = kneighbors_graph(x[used], NEIGHBOURS)
        known = np.asarray(graph.sum(0)).ravel() > 0
        if known.all():
            break
        used = used[known]
    method = LocallyLinearEmbedding(
        **{"n_neighbors": NEIGHBOURS, "n_components": DIMENSIONS, "method": "hessian"},
        eigen_solver="dense",
    )
    # Eigenvectors have norm 1, and so values that are small.
    return method.fit_transform(x[used]) * len(used) ** 0.5, used


def manifolds(seed):
    """Scores of embeddings of sprites, as they come and turned, and the seconds that each took."""
    images = data.load("sprites", seed=seed + evaluation.NEW_SEED, n=IMAGES)
    factors, _ = evaluation.varying_factors(images)
    x = ImageData.to_unit(images.images).flatten(1).numpy()
    x = PCA(COMPONENTS, random_state=seed).fit_transform(x)
    isomap = Isomap(n_neighbors=FEW, n_components=DIMENSIONS)
    methods = {
        "Hessian eigenmaps": hessian,
        "Isomap": lambda x: (isomap.fit_transform(x), slice(None)),
        "Principal components": lambda x: (x[:, :DIMENSIONS], slice(None)),
    }
    found = {}
    for name, method in methods.items():
        began = time.perf_counter()
        codes, used = method(x)
        turned = axes.find(codes)
        about = {"images": len(codes), "s": time.perf_counter() - began}
        found[name] = {**scores(codes, factors[used]), **about}
        if turned is not None:
            found[f"{name} + ICA"] = {**scores(turned(codes), factors[used]), **about}
    return found


def latents_of(folder, seed):
    """The same scores of a run's informative latents, on the same images."""
    fit, _ = runs.load_run(folder, "cpu")
    images = data.load("sprites", seed=seed + evaluation.NEW_SEED, n=IMAGES)
    informative = np.array(runs.load_metrics(folder)["probs"]) > 0.5
    factors, _ = evaluation.varying_factors(images)
    codes = locs(fit, images).double().numpy()[:, informative]
    return {**scores(codes, factors), "images": len(codes)}


def manifold_table(of_seeds):
    """One line a method, mean and standard deviation over the seeds."""
    columns = {**dict.fromkeys(SCORES, ".3f"), "images": ".0f", "s": ".0f"}
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in dict.fromkeys(name for found in of_seeds for name in found):
        cells = []
        for column, digits in columns.items():
            values = [f[name][column] for f in of_seeds if column in f.get(name, {})]
            cell = format(statistics.fmean(values), digits) if values else table.DASH
            if len(values) > 1:
                cell += f" ± {format(statistics.stdev(values), digits)}"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def models(words):
    results = {}
    for pair in words.pairs.split(","):
        of_pair = {}
        for seed in words.seeds:
            folder = words.folder / pair / f"seed-{seed}"
            if not runs.finished(folder):
                print(f"{folder}: no finished run, skipped", flush=True)
                continue
            path = words.out / f"{pair}-{seed}.json"
            of_pair[seed] = known(path, lambda folder=folder: run(folder))
        if of_pair:
            results[pair] = of_pair
    if not results:
        raise UserError(f"{words.folder}: no finished runs of these pairs and seeds")
    seeds = " ".join(map(str, words.seeds))
    command = f"python benchmarks/rotated.py {words.folder} --seeds {seeds} --out {words.out}"
    if words.pairs != ",".join(PAIRS):
        command += f" --pairs {words.pairs}"
    of_pairs = {pair: list(of_pair.values()) for pair, of_pair in results.items()}
    print(table.markdown(comparison(of_pairs, command)))
    print("\n".join(details(results)))


def embeddings(words):
    of_seeds = []
    for seed in words.seeds:
        found = known(words.out / f"manifold-{seed}.json", lambda seed=seed: manifolds(seed))
        folder = words.folder / NG / f"seed-{seed}"
        if runs.finished(folder):
            path = words.out / f"manifold-{NG}-{seed}.json"
            found["NG-VAE"] = known(path, lambda folder=folder, seed=seed: latents_of(folder, seed))
        of_seeds.append(found)
    print(manifold_table(of_seeds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of ngvae compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[60])
    parser.add_argument("--pairs", default=",".join(PAIRS), help="model+guide,model+guide,...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--manifold", action="store_true", help="embeddings instead of models")
    words = parser.parse_args()
    torch.set_num_threads(1)
    words.out.mkdir(parents=True, exist_ok=True)
    try:
        (embeddings if words.manifold else models)(words)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
