"""Where a rotation does not make each latent one factor, does a curved reading of them?

    python benchmarks/curved.py runs/demo runs/other

takes finished runs whose images have known factors, trains no network, and looks for coordinates
u = F_K(... F_1(z)) of the informative latents' posterior means z, without the factors. It starts at
the linear ones of :func:`ngvae_pyro.axes.find`, along which a training has put the latents where
that was free, and undoes fans and bends: a layer is an affine map and a warp of each coordinate by
the others,

    v = (1 + L) B (x - mean) / sd,
    u_k = (v_k - sum_j Q_kj (v_j^2 - 1)) exp(-sum_j G_kj v_j),   j != k,

B the change to independent components in the first layer and 1 in later ones. L, Q and G have no
diagonal and start at 0: 3 M (M - 1) numbers a layer, fitted by minimising over images

    sum_k H(u_k) - E log |det J| + IMA E[sum_k log |column k of J^-1| - log |det J^-1|]
        + RIDGE (|Q|^2 + |G|^2),   J = du/dz.

The first two terms are the mutual information of the coordinates but for the entropy of z, with H
from spacings (Vasicek, 1976, "A test for normality based on sample entropy"). Of nonlinear
coordinates very many are independent, and nothing in them alone tells which are factors. The third
term does: it is 0 where the directions in which the coordinates change z are orthogonal, and has no
end at a fold (Gresele, von Kuegelgen, Stimper, Schoelkopf and Besserve, 2021, "Independent
mechanism analysis, a new concept?", arXiv:2106.05200). Angles in z mean something, because the
decoder of an NG-VAE is near an isometry; see ``axes.py``.

A curved reading has more ways to be wrong than a linear one, so it has to prove itself: one layer
is fitted to each half of 60 % of the codes and to both halves. On the other codes the halves must
agree and the layer of both must leave no two coordinates dependent; else the reading is refused,
and the axes stay linear. Where it is accepted, layers are added as long as the mutual information
falls.

A row of the Markdown table is a run: its informative latents, whether the reading was accepted, its
layers, the agreement of the halves (mean |rank correlation| of matched coordinates), the largest
mutual information of two coordinates after one layer (nats), and scores before and after. Scored
are new images where they are rendered, else the held-out ones. Seconds are those of finding the
coordinates, the linear ones included. A latent is informative where its p exceeds 1/2.
"""

import argparse
import time
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy, spearmanr
from torch import Tensor

from ngvae_pyro import axes, runs
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import metrics
from ngvae_pyro.fitted import locs

# Training images that coordinates are found from, and images drawn anew that are scored.
FITTED, SCORED = 15_000, 10_000
# Weights of the last two terms of what is minimised.
IMA, RIDGE = 0.3, 0.03
# Of Adam, for each layer that is added; the learning rate is halved for layers after the first.
BATCH, STEPS, RATE = 2500, 120, 0.02
# Of the codes, those that are fitted to; the others decide.
SHARE = 0.6
# Least agreement of the halves, and most mutual information that two coordinates are left, nats.
AGREE, LEFT = 0.99, 0.04
# Most layers, and the nats of mutual information that another one must gain.
LAYERS, GAIN = 3, 0.02
# Of each coordinate, when the mutual information of two is measured.
BINS = 16

SCORES = {
    "MCC": metrics.mcc,
    "MIG": metrics.mig,
    "SAP": metrics.sap,
    "FactorVAE": metrics.factor_vae_score,
}
COLUMNS = ("informative", "reading", "layers", "agreement", "MI left", *SCORES, "scored", "s")


@dataclass
class Layer:
    """mean and sd (M,), and B, L, Q and G (M, M); diagonals of the last three have no effect."""

    mean: Tensor
    sd: Tensor
    base: Tensor
    linear: Tensor
    shift: Tensor
    gain: Tensor

    def __call__(self, x):
        """u (N, M) of x (N, M), and du/dx (N, M, M)."""
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        others = 1.0 - eye
        affine = (eye + self.linear * others) @ self.base
        shift, gain = self.shift * others, self.gain * others
        v = (x - self.mean) / self.sd @ affine.T
        scale = torch.exp(-v @ gain.T)
        u = (v - (v * v - 1.0) @ shift.T) * scale
        warp = (eye - 2.0 * v[:, None, :] * shift) * scale[:, :, None] - u[:, :, None] * gain
        return u, warp @ (affine / self.sd)


class Curved:
    """Coordinates u of codes z: layers, one after the other."""

    def __init__(self):
        self.layers = []

    def __call__(self, z):
        """u (N, M) of z (N, M), and du/dz (N, M, M)."""
        u, jacobian = z, torch.eye(z.shape[1], dtype=z.dtype).expand(len(z), -1, -1)
        for layer in self.layers:
            u, warp = layer(u)
            jacobian = warp @ jacobian
        return u, jacobian

    @torch.no_grad()
    def apply(self, codes):
        """u (N, M) of codes (N, M), arrays."""
        return self(torch.as_tensor(codes))[0].numpy()

    def grow(self, z, base):
        """One more layer, which is affine as yet."""
        with torch.no_grad():
            u = self(z)[0]
        # One scale for all codes in the first, so that angles in z stay what they are.
        sd = u.std(0) if self.layers else u.std().expand(u.shape[1])
        linear, shift, gain = (torch.zeros_like(base, requires_grad=True) for _ in range(3))
        self.layers.append(Layer(u.mean(0), sd, base, linear, shift, gain))

    def fit(self, z, rate, seed):
        """All layers at once, in place."""
        linear = [layer.linear for layer in self.layers]
        curved = [matrix for layer in self.layers for matrix in (layer.shift, layer.gain)]
        adam = torch.optim.Adam(linear + curved, lr=rate, betas=(0.9, 0.99))
        random = torch.Generator().manual_seed(seed)
        for step in range(STEPS):
            adam.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20) * (1.0 - step / STEPS)
            rows = torch.randint(len(z), (min(BATCH, len(z)),), generator=random)
            information, angles = terms(*self(z[rows]))
            ridge = sum(matrix.square().sum() for matrix in curved)
            adam.zero_grad()
            (information + IMA * angles + RIDGE * ridge).backward()
            adam.step()


def terms(u, jacobian):
    """Mutual information of u less the entropy of z, and the term of the angles, both in nats."""
    count = len(u)
    spacing = int(1.2 * count**0.5)
    ordered = u.sort(0).values
    gaps = (ordered[spacing:] - ordered[:-spacing]) * (count / spacing)
    entropies = torch.log(gaps + 1e-9).mean(0).sum()
    volume = torch.linalg.slogdet(jacobian)[1]
    columns = torch.linalg.inv(jacobian).square().sum(1).log().sum(1) / 2.0
    return entropies - volume.mean(), (columns + volume).mean()


def most_dependent(u):
    """The largest mutual information of two columns, in bins of equal count, less its bias."""
    count, size = u.shape
    bins = u.argsort(0).argsort(0) * BINS // count
    pairs = [bins[:, i] * BINS + bins[:, j] for i in range(size) for j in range(i)]
    joint = min(entropy(np.bincount(pair)) for pair in pairs)
    return 2.0 * np.log(BINS) - joint - (BINS - 1) ** 2 / (2 * count)


def agreement(u, v):
    """Mean |rank correlation| of the columns of u with those of v that they are matched with."""
    size = u.shape[1]
    table = np.abs(spearmanr(np.hstack([u, v])).statistic)[:size, size:]
    return table[linear_sum_assignment(table, maximize=True)].mean()


def straighten(codes, change, seed):
    """Curved coordinates of codes (N, M), M >= 2, in random order; and why they are what they are.

    ``change`` (M, M) is that to independent components: sources = codes change'.
    """
    z, base = torch.as_tensor(codes), torch.as_tensor(change)
    count = int(len(z) * SHARE)
    train, test = z[:count], z[count:]
    base = base / (train / train.std() @ base.T).std(0)[:, None]
    linear = Curved()
    linear.grow(train, base)
    first, second, both = (deepcopy(linear) for _ in range(3))
    first.fit(train[: count // 2], RATE, seed)
    second.fit(train[count // 2 :], RATE, seed)
    both.fit(train, RATE, seed)
    found = {
        "agreement": agreement(first.apply(test), second.apply(test)),
        "MI left": most_dependent(both.apply(test)),
    }
    if found["agreement"] < AGREE or found["MI left"] > LEFT:
        return linear, found | {"reading": "refused", "layers": 0}
    best = both
    while len(best.layers) < LAYERS:
        more = deepcopy(best)
        more.grow(train, torch.eye(z.shape[1], dtype=z.dtype))
        more.fit(train, RATE / 2.0, seed)
        before, after = (terms(*curved(test))[0].item() for curved in (best, more))
        if after > before - GAIN:
            break
        best = more
    return best, found | {"reading": "accepted", "layers": len(best.layers)}


def images_of(folder, spec):
    """Training images of a run, and those that are scored."""
    train, held_out = runs.run_images(folder, spec)
    if train.factors is None:
        raise UserError(f"{folder}: the factors of its images are not known")
    if not runs.rendered(spec.data):
        return train, held_out
    return train, runs.load_images(
        spec.data.model_copy(update={"size": SCORED}), runs.data_seed(spec) + 1000
    )


def run(folder, seed):
    """What is found in a run folder."""
    fit, spec = runs.load_run(folder)
    train, scored = images_of(folder, spec)
    latents = [k for k, p in enumerate(runs.load_metrics(folder)["probs"]) if p > 0.5]
    if len(latents) < 2:
        raise UserError(f"{folder}: has {len(latents)} informative latents; expected at least two")
    order = np.random.default_rng(seed).permutation(len(train))[:FITTED]
    some = train.subset(torch.as_tensor(order))
    codes, new = (locs(fit, images)[:, latents].double().numpy() for images in (some, scored))
    begin = time.perf_counter()
    found = axes.find(codes)
    if found is None:
        raise UserError(f"{folder}: its informative latents are linearly dependent")
    curved, result = straighten(codes, found.change, seed)
    result["s"] = time.perf_counter() - begin
    factors = np.asarray(scored.factors, float)
    for name, score in SCORES.items():
        result[name] = [score(found(new), factors), score(curved.apply(new), factors)]
    drawn = "new" if runs.rendered(spec.data) else "held out"
    return result | {"informative": len(latents), "scored": f"{len(scored):,} {drawn}"}


def cell(value, column):
    if isinstance(value, list):
        return " → ".join(f"{score:.3f}" for score in value)
    digits = {"agreement": 4, "MI left": 3, "s": 0}
    return f"{value:.{digits[column]}f}" if column in digits else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a finished run folder")
    parser.add_argument("--seed", type=int, default=0, help="of order and batches of the codes")
    words = parser.parse_args()
    torch.set_num_threads(1)
    print("| run | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS), flush=True)
    for folder in words.runs:
        try:
            result = run(folder, words.seed)
        except UserError as error:
            parser.error(str(error))
        cells = [cell(result[column], column) for column in COLUMNS]
        print(f"| {folder} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
