"""Are reconstructions and draws as sharp as the data? One ResNetV2 pair, several objectives.

    pip install -e ".[bench]"
    python benchmarks/sharpness.py --out runs/sharpness

Every case trains the same encoder and decoder for the same steps on the same 64x64 sprites with the
sharpest edge; only the guide's family or objective and the PatchGAN differ. A case that is already
in the folder is not run again. The table is Markdown on standard output and in ``table.md``, the
reconstructions of the first held-out images are in ``reconstructions.png``.

Sharpness is :func:`ngvae_pyro.metrics.sharpness`; more than that of the data is as wrong as less.
The Frechet distance is that of Heusel et al. (2017), arXiv:1706.08500, by torchmetrics, between the
held-out images and as many reconstructions or draws; its features are not those of Inception, which
knows photographs and is a download, but the last hidden layer of a small network trained here to
tell the sprites' factors. Its values compare rows of one table and nothing else. The weight of the
discriminator was not searched for: at 200, what it says is some fifth of the squared errors' nats
of a decoder at an MSE of 1e-3.
"""

import argparse
import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from ngvae_pyro import machine, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.evaluation import diagnostics, metrics
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import AdversarialSpec, FitSpec, ResNetV2Spec
from ngvae_pyro.training import trainer as svi

FACTORS = ("x", "y", "size", "red", "blue")
NETWORK = ResNetV2Spec(channels=8)
ADVERSARY = AdversarialSpec()
LATENTS = 10
TRAIN, HELD_OUT = 8000, 500
SHOWN = 10
# Name: (title, guide, with a discriminator).
CASES = {
    "gaussian": ("Gaussian", "gaussian", False),
    "mixture": ("Gaussian mixture", "gaussian_mixture", False),
    "mixture_gan": ("Gaussian mixture + PatchGAN", "gaussian_mixture", True),
    "gaussian_gan": ("Gaussian + PatchGAN", "gaussian", True),
    "gamix_gan": ("GAMIX objective + PatchGAN", "gamix", True),
}


class Features(nn.Module):
    """Tells the factors of sprites (B, 3, 64, 64) in [0, 1]; its features are (B, 64)."""

    num_features = 64

    def __init__(self, targets):
        super().__init__()
        sizes = [3, 16, 32, 32, 32]
        layers = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU())
        self.head = nn.Linear(64, targets)

    def forward(self, x):
        return self.trunk(x)


def targets(data):
    """The factors that vary, as columns of mean 0 and variance 1."""
    columns = [data.factors[:, data.factor_names.index(name)] for name in FACTORS]
    y = torch.stack(columns, 1)
    return (y - y.mean(0)) / y.std(0)


def load_features(out, data, seed):
    """The feature network, trained once for a folder."""
    path, y = out / "features.pt", targets(data)
    features = Features(y.shape[1])
    if path.exists():
        features.load_state_dict(torch.load(path, weights_only=True))
        return features.eval()
    torch.manual_seed(seed)
    features = Features(y.shape[1])
    optimizer = torch.optim.Adam(features.parameters(), lr=2e-3)
    for _ in range(1500):
        rows = torch.randint(len(data), (32,))
        told = features.head(features(ImageData.to_unit(data.images[rows])))
        loss = (told - y[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"features: mean squared error {loss.item():.3f} of a variance of 1", flush=True)
    torch.save(features.state_dict(), path)
    return features.eval()


@torch.no_grad()
def distance(features, real, made):
    # Of an extra, which --help does without.
    from torchmetrics.image.fid import FrechetInceptionDistance

    fid = FrechetInceptionDistance(feature=features, normalize=True, input_img_size=(3, 64, 64))
    for images, is_real in ((real, True), (made, False)):
        for part in images.split(250):
            fid.update(part, real=is_real)
    return fid.compute().item()


@torch.no_grad()
def run(out, name, data, held_out, features, steps, seed, adversary):
    _, guide, has_adversary = CASES[name]
    torch.manual_seed(seed)
    model = load_model("gaussian", data, latent_size=LATENTS, decoder=NETWORK)
    guide = load_guide(guide, model, encoder=NETWORK)
    spec = FitSpec(
        steps=steps,
        batch_size=8,
        learning_rate=2e-3,
        seed=seed,
        device="cpu",
        monitor_every=steps,
        adversarial=adversary if has_adversary else None,
    )
    with torch.enable_grad():
        fit = svi.fit(model, guide, data, spec, progress=False)
    real = ImageData.to_unit(held_out.images)
    rebuilt = torch.cat([diagnostics.reconstruct(fit, x) for x in real.split(250)]).clamp(0, 1)
    with machine.seeded(seed, fit.device):
        z = model.marginal.sample((len(real),))
    drawn = torch.cat([model.likelihood(model.decoder(part)).mean for part in z.split(250)])
    drawn = drawn.clamp(0, 1)
    numbers = diagnostics.evaluate(fit, held_out, seed)
    result = {
        "MSE": numbers["reconstruction_mse"],
        "ELBO": numbers["elbo"],
        "sharpness": metrics.sharpness(rebuilt),
        "sharpness of draws": metrics.sharpness(drawn),
        "Frechet": distance(features, real, rebuilt),
        "Frechet of draws": distance(features, real, drawn),
        "seconds": fit.seconds,
    }
    np.savez_compressed(out / f"{name}.npz", rebuilt=rebuilt[:SHOWN], drawn=drawn[:SHOWN])
    # Last, and in one move: a case is done where its numbers are there.
    path = out / f"{name}.json"
    runs.write_json(path.with_suffix(".part"), result)
    path.with_suffix(".part").rename(path)
    print(f"{name}: {result}", flush=True)


def table(out, names, data):
    def show(value):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"

    columns = ["MSE", "ELBO", "sharpness", "of the data's", "Frechet"]
    columns += ["sharpness of draws", "Frechet of draws", "seconds"]
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    own = {"sharpness": data["sharpness"], "Frechet": data["Frechet"]}
    rows = [("the data", own)]
    for name in names:
        row = json.loads((out / f"{name}.json").read_text())
        row["of the data's"] = row["sharpness"] / data["sharpness"]
        rows.append((CASES[name][0], row))
    for title, row in rows:
        cells = [show(row[c]) if c in row else "-" for c in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(out, names, held_out):
    rows = [("the data", ImageData.to_unit(held_out.images[:SHOWN]).numpy())]
    rows += [(CASES[n][0], np.load(out / f"{n}.npz")["rebuilt"]) for n in names]
    fig, axes = plt.subplots(
        len(rows), SHOWN, figsize=(2.2 + 1.1 * SHOWN, 1.15 * len(rows)), squeeze=False
    )
    for (title, images), line in zip(rows, axes, strict=True):
        for image, ax in zip(images, line, strict=True):
            ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
            ax.set_axis_off()
        line[0].text(
            *(-0.1, 0.5, title.replace(" + ", "\n+ ")),
            **{"ha": "right", "va": "center", "transform": line[0].transAxes},
        )
    fig.subplots_adjust(0.16, 0.01, 0.995, 0.99, wspace=0.04, hspace=0.04)
    fig.savefig(out / "reconstructions.png", dpi=110)
    plt.close(fig)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--weight", type=float, default=ADVERSARY.weight)
    words = parser.parse_args()
    if importlib.util.find_spec("torchmetrics") is None:
        parser.error("needs torchmetrics: pip install 'ngvae_pyro[bench]'")
    words.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = sprites(TRAIN, words.seed, resolution=64, vary=FACTORS, edge=0.5)
    held_out = sprites(2 * HELD_OUT, words.seed + 1000, resolution=64, vary=FACTORS, edge=0.5)
    # Two halves: one to reconstruct, the other for the distance of the data from themselves.
    held_out, others = held_out.subset(slice(0, HELD_OUT)), held_out.subset(slice(HELD_OUT, None))
    features = load_features(words.out, data, words.seed)
    adversary = ADVERSARY.model_copy(update={"weight": words.weight})
    for name in words.cases:
        if not (words.out / f"{name}.json").exists():
            arguments = (data, held_out, features, words.steps, words.seed, adversary)
            run(words.out, name, *arguments)
    own = {
        "sharpness": metrics.sharpness(held_out.images),
        "Frechet": distance(features, *(ImageData.to_unit(d.images) for d in (held_out, others))),
    }
    text = table(words.out, words.cases, own)
    (words.out / "table.md").write_text(text + "\n")
    figure(words.out, words.cases, held_out)
    print(text)


if __name__ == "__main__":
    main()
