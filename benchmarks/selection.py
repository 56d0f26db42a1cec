"""Does the model count the factors? Seeds, subsets of factors and latent sizes, one setting.

    python benchmarks/selection.py --out runs/selection --jobs 2

Every case trains the default pair and, with ``--vanilla``, the ``gaussian`` pair with the same
networks, data and steps. A case that is already in the folder is not run again. The table is
Markdown on standard output and in ``table.md``. The defaults were chosen on other cases: seeds 0
and 1 of the full data set, seed 0 of {x, y, size, red} and of {red, green, blue}, and, after a
first sweep over seeds 10 to 29 had shown two subsets with one latent too many, {x, y} with seed 20
and {x, y, red, green} with seed 24. The length of a death was then set on black and white images of
other code (docs/selection.md).
"""

import argparse
import json
import multiprocessing
import statistics
from pathlib import Path

import torch

from ngvae_pyro import runs
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.variants import run_spec

# (data, latent size, seed)
SEEDS = [("sprites", 15, seed) for seed in range(40, 50)]
VARIED = [
    ("sprites:y,blue", 15, 50),
    ("sprites:x,size", 15, 51),
    ("sprites:x,green,background", 15, 52),
    ("sprites:y,size,red", 15, 53),
    ("sprites:x,y,size,background", 15, 54),
    ("sprites:red,green,blue,background", 15, 55),
    ("sprites:x,y,size,green,blue", 15, 56),
    ("sprites:x,size,red,blue,background", 15, 57),
    ("sprites", 10, 58),
    ("sprites", 30, 59),
]
PAIRS = {"ng": ("normal_gamma", "relaxed"), "vanilla": ("gaussian", "gaussian")}


def path_of(out, case, pair):
    data, latents, seed = case
    return out / f"{data.replace(':', '-').replace(',', '_')}-K{latents}-s{seed}-{pair}.json"


def run(task):
    out, case, pair, steps = task
    data, latents, seed = case
    torch.set_num_threads(1)
    values = {"model": {"latent_size": latents}, "data": {"name": data}, "fit": {"seed": seed}}
    if steps:
        values["fit"]["steps"] = steps
    spec = run_spec(*PAIRS[pair], values, "benchmark")
    train, held_out = runs.load_data(spec)
    fit = svi.fit(*runs.load_pair(spec, train), train, spec.fit, progress=False)
    metrics = diagnostics.evaluate(fit, held_out, seed)
    metrics["moves"] = [[m.kind, m.latent, m.step, m.accepted] for m in fit.moves]
    path = path_of(out, case, pair)
    runs.write_json(path.with_suffix(".part"), metrics)
    path.with_suffix(".part").rename(path)
    print(f"{path.stem}: {metrics['informative']} informative", flush=True)


def factors(data):
    return len(data.partition(":")[2].split(",")) if ":" in data else 7


def row(out, case):
    """One line of the table, or None while the case is not there."""
    path = path_of(out, case, "ng")
    if not path.exists():
        return None
    metrics = json.loads(path.read_text())
    others = [r for r in diagnostics.most_informative_first(metrics) if r["probs"] <= 0.5]
    precision = [r["precision"]["mean"] for r in others]
    path = path_of(out, case, "vanilla")
    vanilla = json.loads(path.read_text()) if path.exists() else {}
    data, latents, seed = case
    return {
        "data": data,
        "K": latents,
        "seed": seed,
        "factors": factors(data),
        "informative": metrics["informative"],
        "others' precision": f"{min(precision):.3f} to {max(precision):.3f}" if others else "-",
        "others' var of loc": f"{max((r['variance_of_loc'] for r in others), default=0):.4f}",
        "MSE": metrics["reconstruction_mse"],
        "ELBO": metrics["elbo"],
        "vanilla active": vanilla.get("active_units"),
        "vanilla MSE": vanilla.get("reconstruction_mse"),
        "vanilla ELBO": vanilla.get("elbo"),
    }


def table(rows):
    def show(value):
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.2e}" if abs(value) < 1 else f"{value:.1f}"
        return str(value)

    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(show(r[n]) for n in names) + " |" for r in rows]
    exact = sum(r["informative"] == r["factors"] for r in rows)
    lines.append(f"\nExact in {exact} of {len(rows)}.")
    both = [r for r in rows if r["vanilla MSE"] is not None]
    if both:
        better = sum(r["MSE"] <= r["vanilla MSE"] for r in both)
        ratio = statistics.median(r["MSE"] / r["vanilla MSE"] for r in both)
        means = [statistics.mean(r[name] for r in both) for name in ("MSE", "vanilla MSE")]
        lines.append(
            f"MSE not above vanilla's in {better} of {len(both)}: on average {means[0]:.2e} "
            f"against {means[1]:.2e}, median ratio {ratio:.2f}."
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=None, help="default: the declared steps")
    parser.add_argument("--vanilla", action="store_true", help="train the gaussian pair too")
    parser.add_argument("--cases", choices=["seeds", "varied", "all"], default="all")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    groups = {"seeds": SEEDS, "varied": VARIED}
    chosen = {k: v for k, v in groups.items() if words.cases in (k, "all")}
    tasks = [
        (words.out, case, pair, words.steps)
        for pair in (["ng", "vanilla"] if words.vanilla else ["ng"])
        for cases in chosen.values()
        for case in cases
        if not path_of(words.out, case, pair).exists()
    ]
    with multiprocessing.get_context("spawn").Pool(words.jobs) as pool:
        list(pool.imap_unordered(run, tasks))
    text = ""
    for name, cases in chosen.items():
        rows = [r for r in (row(words.out, case) for case in cases) if r is not None]
        text += f"### {name}\n\n{table(rows)}\n\n"
    (words.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
