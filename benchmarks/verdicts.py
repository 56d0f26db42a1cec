"""How often is the verdict right? Counts on twelve kinds of images, and what is said of them.

    python benchmarks/verdicts.py --out runs/verdicts --seeds 95 195

trains the default pair on 22,000 images of each kind of :mod:`kinds` for each seed, two minutes and
more a run, and prints a Markdown table: the true number, the count, and the verdict on it. Below it
is how many wrong counts were called unsettled, and how many right ones. The column "worth" has the
nats by which log p(x | z) of 600 held-out images falls where leaking latents are drawn from their
prior. A run that is in the folder already is read and not trained again, and judged by the rules as
they are now. ``--three-grey`` adds three faint factors at four lengths of training and two standard
deviations of a pixel.
"""

import argparse
from pathlib import Path

import kinds
import torch

from ngvae_pyro import runs
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.machine import seeded
from ngvae_pyro.variants import run_spec

IMAGES, FEW = 22_000, 3_000
SMALL = {"model": {"decoder": {"width": 64}}, "guide": {"encoder": {"width": 64}}}
# What it takes to see three faint factors, and what does not suffice.
THREE_GREY = {
    **{f"three_grey-{steps}": {"fit": {"steps": steps}} for steps in (300, 1000, 2000, 4400)},
    "three_grey-4400-scale05": {"model": {"likelihood": {"scale": 0.05}}},
}


def images_of(out, name, kind, count, seed):
    path = out / f"{name}.npz"
    if not path.exists():
        kinds.save(path, kind, count, seed)
    return path


def trained(out, name, data, seed, changes):
    """The run folder of a case, trained if it is not there."""
    folder = out / name
    if not runs.finished(folder):
        values = {"data": {"name": str(data)}, "fit": {"seed": seed}}
        for part, table in changes.items():
            values[part] = {**values.get(part, {}), **table}
        spec = run_spec("normal_gamma", "relaxed", values, "benchmark")
        runs.train(spec, folder, overwrite=True, progress=False)
    return folder


@torch.no_grad()
def worth(fit, spec, latents):
    """Nats by which log p(x | z) falls without some latents, mean of 600 held-out images."""
    if not latents:
        return 0.0
    _, held_out = runs.load_data(spec)
    x = ImageData.to_unit(held_out.images[:600])
    with evaluating(fit.model, fit.guide), seeded(0, torch.device("cpu")):
        codes = fit.guide.codes(x)
        z = codes.loc + codes.precision.rsqrt() * torch.randn_like(codes.loc)
        without = z.clone()
        without[:, latents] = torch.randn(len(x), len(latents))
        means = (
            fit.model.likelihood(fit.model.decoder(each)).log_prob(x).mean()
            for each in (z, without)
        )
        return float(next(means) - next(means))


def row_of(folder, true):
    fit, spec = runs.load_run(folder, "cpu")
    metrics = runs.load_metrics(folder)
    numbers = metrics["probs"], metrics["variance_of_loc"], metrics["precision"]["mean"]
    verdict = fit.judge(*numbers)
    return {
        "true": true,
        "found": verdict.informative,
        "verdict": verdict.word,
        "leaks": len(verdict.leaking),
        "worth": worth(fit, spec, list(verdict.leaking)),
        "mse": metrics["reconstruction_mse"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[95, 195])
    parser.add_argument("--three-grey", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases = []
    if arguments.three_grey:
        data = images_of(arguments.out, "three_grey", "three_grey", FEW, 0)
        for name, changes in THREE_GREY.items():
            cases.append((name, data, 0, 3, {**SMALL, **changes}))
            if "model" in changes:
                cases[-1][-1]["model"] = {**SMALL["model"], **changes["model"]}
    for seed in arguments.seeds:
        for kind in sorted(set(kinds.KINDS) - {"three_grey"}):
            name = f"{kind}-{seed}"
            data = images_of(arguments.out, name, kind, IMAGES, seed)
            cases.append((name, data, seed, kinds.KINDS[kind][-1], {}))
    print("| run | true | found | verdict | leaking latents | worth, nats | MSE |")
    print("|---|---:|---:|---|---:|---:|---:|")
    rows = []
    for name, data, seed, true, changes in cases:
        row = row_of(trained(arguments.out, name, data, seed, changes), true)
        rows.append(row)
        print(
            f"| {name} | {true} | {row['found']} | {row['verdict']} | {row['leaks']} | "
            f"{row['worth']:.0f} | {row['mse']:.1e} |",
            flush=True,
        )
    for right, text in ((False, "wrong counts called unsettled"), (True, "right ones")):
        judged = [
            row["verdict"] != "settled" for row in rows if (row["found"] == row["true"]) is right
        ]
        print(f"\n{text}: {sum(judged)} of {len(judged)}")


if __name__ == "__main__":
    main()
