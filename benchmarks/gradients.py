"""Gradient estimators of the Normal-Gamma posteriors side by side: bias, variance and time.

    python benchmarks/gradients.py --out runs/gradients

Two posteriors, each with several estimators of the gradient of its ELBO by the encoder's loc mu and
logit of p. All of them go through Pyro's ELBOs as a training does, except DisARM and the local
expectation gradients, which need the decoder more than once and are written out here. In a trial
the encoder is replaced by parameters, one row for every draw, so that one backward pass gives as
many independent gradients as there are rows.

1. A small problem, three latents and a linear decoder, in float64: the exact gradient is known (in
   closed form, and by quadrature for the KL of the precision), so the bias is measured in standard
   errors of the mean over ``--draws`` draws, for components that are separated and overlap.
2. The NG-VAE of the declared defaults on sprites, after 1 %, 25 % and 100 % of the training, each
   posterior in its own run: the variance of the gradient, the time of one gradient for a batch of
   64 through the whole network, and their product. Here the bias is measured against the reference
   estimator of that posterior, over all coordinates of mu, and over those of p in which the draws
   have seen both components.

A trained run is kept in the folder and not trained again. The tables are Markdown on standard
output and in ``table.md``; the figure is ``gradients.png``.
"""

import argparse
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path

import pyro
import torch
from matplotlib.lines import Line2D
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from safetensors.torch import load_file, save_file
from torch import nn

from ngvae_pyro import machine, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions import conditional_kl, kl_bound
from ngvae_pyro.guide import ScoreGuide, load_guide
from ngvae_pyro.model import NormalGammaVAE
from ngvae_pyro.objectives import MixtureELBO
from ngvae_pyro.report import plots
from ngvae_pyro.specs import MLPSpec, ModelSpec
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.variants import run_spec

# While p is being decided, when the annealing has ended, and at the end.
STAGES = (0.01, 0.25, 1.0)
# A coordinate of p is judged where its rarer component is expected so often among the draws.
SEEN = 20
IMAGES, BATCH = 8, 64
GAMMAS = {
    "separated": {"concentration": (1000.0, 100.0), "rate": (0.1, 100.0)},
    "overlapping": {"concentration": (5.0, 5.0), "rate": (0.5, 5.0)},
}


# Estimators that are only compared with ----------------------------------------------------------


class PathwisePrecision(ScoreGuide):
    """The exact mixture, its precision drawn by implicit reparameterisation."""

    def forward(self, x):
        q = self.posterior(x)
        with pyro.plate("data", len(x)):
            fn = q.precision.has_rsample_(True)
            precision = pyro.sample("precision", fn.to_event(1))
            pyro.sample("z", q.conditional(precision).to_event(1))


class BaselineGuide(ScoreGuide):
    """The score function with Pyro's decaying average as a baseline."""

    def forward(self, x):
        q = self.posterior(x)
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", q.precision.to_event(1), infer=infer)
            pyro.sample("z", q.conditional(precision).to_event(1))


class ComponentELBO:
    """ELBOs of the exact mixture that draw its components; the KL is that of MixtureELBO."""

    def __init__(self, prior):
        self.prior = prior

    def loss_and_grads(self, model, guide, x):
        q = guide.posterior(x)
        # One precision of each component and one noise serve all choices of components.
        precision = q.precision._components.sample()
        noise = torch.randn_like(q.loc)

        def log_likelihood(first):
            scale = torch.where(first, precision[..., 0], precision[..., 1]).rsqrt()
            return model.likelihood(model.decoder(q.loc + noise * scale)).log_prob(x)

        kl = conditional_kl(q, self.prior) + kl_bound(q.precision, self.prior.precision)
        (kl.sum() - self.surrogate(q, log_likelihood)).backward()


class DisARM(ComponentELBO):
    """Antithetic draws of all components at once (Dong, Mnih and Tucker, 2020, arXiv:2006.10680).

    grad = 1/2 (f(b) - f(b')) (-1)^b' 1[b != b'] sigmoid(|logit|), b = 1[u < p], b' = 1[1 - u < p].
    """

    def surrogate(self, q, log_likelihood):
        u = torch.rand_like(q.loc)
        one, other = u < q.probs, 1 - u < q.probs
        f, g = log_likelihood(one), log_likelihood(other)
        sign = torch.where(one == other, 0.0, torch.where(other, -1.0, 1.0))
        by_logit = 0.5 * (f - g).detach().unsqueeze(-1) * sign * q.logits.abs().sigmoid().detach()
        return 0.5 * (f + g).sum() + (by_logit * q.logits).sum()


class LocalExpectation(ComponentELBO):
    """Each component summed out in turn (Titsias and Lazaro-Gredilla, 2015): K + 1 decodings."""

    def surrogate(self, q, log_likelihood):
        drawn = torch.rand_like(q.loc) < q.probs
        f = log_likelihood(drawn)
        with torch.no_grad():
            gain = []
            for k in range(q.loc.shape[-1]):
                flipped = drawn.clone()
                flipped[..., k] = ~drawn[..., k]
                gain.append((f - log_likelihood(flipped)) * torch.where(drawn[..., k], 1, -1))
        return f.sum() + (torch.stack(gain, -1) * q.probs).sum()


# Name: (posterior, class or family of the guide, ELBO from the prior).
ESTIMATORS = {
    "relaxed: implicit (default)": ("relaxed", "relaxed", lambda prior: Trace_ELBO()),
    "relaxed: generalized": ("relaxed", "generalized", lambda prior: Trace_ELBO()),
    "mixture: z implicit (default)": ("mixture", "mixture", MixtureELBO),
    "mixture: the same, Trace_ELBO": ("mixture", "mixture", lambda prior: Trace_ELBO()),
    "mixture: local expectations": ("mixture", "score", LocalExpectation),
    "mixture: DisARM": ("mixture", "score", DisARM),
    "mixture: score": ("mixture", "score", lambda prior: Trace_ELBO()),
    "mixture: score, baseline": ("mixture", BaselineGuide, lambda prior: TraceGraph_ELBO()),
    "mixture: precision implicit": ("mixture", PathwisePrecision, lambda prior: Trace_ELBO()),
}
REFERENCES = {"relaxed": "relaxed: implicit (default)", "mixture": "mixture: local expectations"}
# Those whose KL is the closed bound; the other ones' is sampled, and exact on average.
BOUNDED = (MixtureELBO, DisARM, LocalExpectation)


def build_guide(kind, model, **changes):
    if isinstance(kind, str):
        return load_guide(kind, model, **changes)
    guide = load_guide("score", model, **changes)
    return kind(guide.spec, model)


# Trials ------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """In place of an encoder: loc and logits as parameters, a row for every draw."""

    def __init__(self, loc, logits):
        super().__init__()
        self.loc, self.logits = nn.Parameter(loc.clone()), nn.Parameter(logits.clone())

    def forward(self, x):
        return self.loc, self.logits


def gradients(model, guide, elbo, x, loc, logits, draws, rows):
    """Independent gradients (N, draws, 2, K) of the -ELBO by loc and logits at N images x.

    Rows is how many are taken in one pass.
    """
    count, each = len(x), max(1, rows // len(x))
    wide = [v.repeat_interleave(each, 0) for v in (x, loc, logits)]
    guide.encoder = Rows(*wide[1:])
    found = []
    # Pyro warns of parameters without gradient in a model that is trained.
    model.eval().requires_grad_(False)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        for _ in range(math.ceil(draws / each)):
            guide.zero_grad()
            elbo.loss_and_grads(model, guide, wide[0])
            gradient = torch.stack([guide.encoder.loc.grad, guide.encoder.logits.grad], 1)
            found.append(gradient.unflatten(0, (count, each)))
    return torch.cat(found, 1)


def z_scores(found, reference, reference_variance=0.0):
    """(mean - reference) over its standard error, for each coordinate."""
    variance = found.var(1) / found.shape[1] + reference_variance
    # A coordinate that never varies agrees exactly or not at all.
    difference = found.mean(1) - reference
    return torch.where(difference.abs() < 1e-9, 0.0, difference / variance.sqrt())


def costs(found, seconds):
    """Variance, summed over latents and averaged over images, and variance x time."""
    mu, logit = found.var(1).sum(-1).mean(0).tolist()
    return {
        "variance of mu": mu,
        "variance of logit": logit,
        "ms": 1e3 * seconds,
        "cost of mu": mu * seconds,
        "cost of logit": logit * seconds,
    }


# The small problem -------------------------------------------------------------------------------


def small_model():
    spec = ModelSpec(latent_size=3, decoder=MLPSpec(width=4, depth=1))
    model = NormalGammaVAE(spec, (1, 2, 4))
    model.decoder.trunk = nn.Sequential(nn.Identity(), nn.Linear(4, 8))
    model.likelihood.log_scale.fill_(math.log(0.3))
    return model.double().eval()


def exact_elbo(model, q, x, bounded):
    """The ELBO in float64, the reconstruction in closed form and the KL by quadrature.

    ``bounded`` takes the chain-rule bound of the KL instead, which is closed.
    """
    weight = model.decoder.trunk[1].weight @ model.decoder.stem.weight
    scale = model.likelihood.log_scale.exp()
    at_mean = model.likelihood(model.decoder(q.loc)).log_prob(x)
    spread = (weight.square().sum(0) * q.variance[..., 0]).sum(-1) / (2 * scale**2)
    kl = conditional_kl(q, model.prior)
    if bounded:
        kl = kl + kl_bound(q.precision, model.prior.precision)
    else:
        grid = torch.linspace(-12.0, 14.0, 40_001)
        value = grid.exp().view(-1, 1, 1)
        log_q = q.precision.log_prob(value)
        inner = log_q.exp() * (log_q - model.prior.precision.log_prob(value)) * value
        kl = kl + torch.trapezoid(inner, grid, dim=0)
    return at_mean - spread - kl.sum(-1)


def small_problem(draws, seed):
    """{estimator: {components: row}}, and over how many coordinates a row's largest |z| is."""
    torch.manual_seed(0)
    model = small_model()
    x = torch.rand(2, 1, 2, 4)
    loc, logits = torch.randn(2, 3), torch.tensor([[-2.0, 0.0, 3.0], [0.5, -0.5, 1.5]])
    torch.manual_seed(seed)
    table = {}
    for name, (_, kind, make_elbo) in ESTIMATORS.items():
        table[name] = {}
        for label, gammas in GAMMAS.items():
            guide = build_guide(kind, model, **gammas).double()
            elbo = make_elbo(model.prior)
            guide.encoder = Rows(loc, logits)
            exact = exact_elbo(model, guide.posterior(x), x, isinstance(elbo, BOUNDED)).sum()
            exact = torch.autograd.grad(-exact, list(guide.encoder.parameters()))
            began = time.perf_counter()
            found = gradients(model, guide, elbo, x, loc, logits, draws, 20_000)
            seconds = (time.perf_counter() - began) / found[:, :, 0, 0].numel()
            z = z_scores(found, torch.stack(exact, 1)).abs().max().item()
            table[name][label] = {"z": z, **costs(found, seconds)}
            print(f"small problem, {label}, {name}: {table[name][label]}", flush=True)
    return table, loc.numel() * 2


# The NG-VAE --------------------------------------------------------------------------------------


def train(out, posterior, seed, steps):
    """Weights of a run at the stages, as files; trained unless they are there."""
    paths = [out / f"{posterior}-{stage:g}.safetensors" for stage in STAGES]
    values = {"fit": {"seed": seed, **({"steps": steps} if steps else {})}}
    if posterior == "mixture":
        # Exact throughout, which its declared schedule is only at the end.
        values["guide"] = {"schedule": {"exact": 0.0}}
    spec = run_spec("normal_gamma", posterior, values, "benchmark")
    images, held_out = runs.load_data(spec)
    model, guide = runs.load_pair(spec, images)
    if not all(path.exists() for path in paths):
        trainer = svi.Trainer(model, guide, images, spec.fit, guide.spec.schedule)
        actions, todo = list(trainer.actions), list(zip(STAGES, paths, strict=True))
        with pyro.get_param_store().scope(), machine.seeded(seed, trainer.device):
            while todo:
                if trainer.step >= todo[0][0] * spec.fit.steps:
                    save_file(states(model, guide), todo.pop(0)[1])
                elif actions and trainer.step >= actions[0].at * spec.fit.steps:
                    actions.pop(0).apply(trainer)
                else:
                    trainer.train_step()
    return model, guide, held_out, paths


def states(model, guide):
    parts = {"model": model, "guide": guide}
    return {f"{p}.{k}": v.clone() for p, m in parts.items() for k, v in m.state_dict().items()}


def load(path, model, guide):
    tensors = load_file(path)
    for part, module in (("model", model), ("guide", guide)):
        own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)}
        module.load_state_dict(own)


def one_gradient(model, guide, elbo, x):
    model.train().requires_grad_(True)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        elbo.loss_and_grads(model, guide, x)


def seconds_per_gradient(cases, rounds=30):
    """Median seconds of one gradient of a batch, the estimators taking turns."""
    spent = {name: [] for name in cases}
    for turn in range(rounds + 3):
        for name, step in cases.items():
            began = time.perf_counter()
            step()
            if turn >= 3:
                spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in spent.items()}


def real_problem(out, draws, seed, steps):
    """{stage: {estimator: row}} for the two posteriors on sprites."""
    table = {stage: {} for stage in STAGES}
    for posterior, reference in REFERENCES.items():
        own = {n: e for n, e in ESTIMATORS.items() if e[0] == posterior}
        model, trained, held_out, paths = train(out, posterior, seed, steps)
        for stage, path in zip(STAGES, paths, strict=True):
            load(path, model, trained)
            x = ImageData.to_unit(held_out.images[:BATCH])
            with torch.no_grad():
                loc, logits = trained.encoder(x[:IMAGES])
            guides = {name: build_guide(kind, model) for name, (_, kind, _) in own.items()}
            for guide in guides.values():
                # The encoder, and the sharpness of that time where there is one.
                tensors = trained.state_dict()
                guide.load_state_dict({key: tensors[key] for key in guide.state_dict()})
            elbos = {name: make(model.prior) for name, (_, _, make) in own.items()}

            cases = {
                name: partial(one_gradient, model, guides[name], elbos[name], x) for name in own
            }
            seconds = seconds_per_gradient(cases)
            found = {}
            for name in own:
                guide = guides[name]
                parts = (x[:IMAGES], loc, logits)
                found[name] = gradients(model, guide, elbos[name], *parts, draws, 512).double()
            centre = found[reference].mean(1)
            centre_variance = found[reference].var(1) / draws
            rarer = torch.minimum(logits.sigmoid(), (-logits).sigmoid())
            judged = torch.stack((torch.ones_like(rarer), rarer * draws >= SEEN), 1).bool()
            for name, values in found.items():
                z = z_scores(values, centre, centre_variance)[judged]
                rms = None if name == reference else z.square().mean().sqrt().item()
                table[stage][name] = {"z": rms, **costs(values, seconds[name])}
                print(f"{posterior} at {stage:.0%}, {name}: {table[stage][name]}", flush=True)
    return table


# Tables and figure -------------------------------------------------------------------------------


def tables(result):
    lines = []
    header = "variance, mu | variance, logit p | ms | variance x s, mu | variance x s, logit p |"
    for label in GAMMAS:
        lines += [
            f"\nSmall problem, {label} components, {result['draws']:,} draws; largest abs(z) of "
            f"{result['coordinates']} coordinates:\n",
            f"| estimator | largest z | {header}",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [line(name, rows[label]) for name, rows in result["small"].items()]
    for stage, rows in result["real"].items():
        lines += [
            f"\nNG-VAE, {float(stage):.0%} of the training done:\n",
            f"| estimator | rms z | {header}",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [line(name, row) for name, row in rows.items()]
    return "\n".join(lines).strip()


def line(name, row):
    z = "reference" if row["z"] is None else f"{row['z']:.1f}"
    keys = ("variance of mu", "variance of logit", "ms", "cost of mu", "cost of logit")
    return f"| {name} | {z} | " + " | ".join(f"{row[key]:.3g}" for key in keys) + " |"


def figure(path, result):
    """Variance x time of every estimator and stage, for mu and for the logit of p."""
    names = list(reversed(ESTIMATORS))
    looks = [("o", "#a6cee3"), ("s", "#3182bd"), ("D", "#08306b")]
    with plots.new_figure(path, 10.0, 4.4) as fig:
        axes = fig.subplots(1, 2, sharey=True)
        for axis, key, title in zip(
            axes,
            ("cost of mu", "cost of logit"),
            ("gradient by mu", "gradient by the logit of p"),
            strict=True,
        ):
            for (marker, colour), rows in zip(looks, result["real"].values(), strict=True):
                values = [rows[name][key] for name in names]
                axis.scatter(values, range(len(names)), c=colour, marker=marker, s=36, zorder=3)
            axis.set_xscale("log")
            axis.set_title(title)
            axis.set_xlabel("variance × seconds per gradient (less is better)")
            axis.set_yticks(range(len(names)), names)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", label=f"{float(stage):.0%}")
            for (marker, colour), stage in zip(looks, result["real"], strict=True)
        ]
        fig.legend(
            handles=handles, title="part of training done", loc="outside lower center", ncols=3
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=1_000_000, help="of the small problem")
    parser.add_argument("--real-draws", type=int, default=4096, help="of the NG-VAE, per image")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="default: the declared steps")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    small, coordinates = small_problem(words.draws, words.seed)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(words.seed)
    real = real_problem(words.out, words.real_draws, words.seed, words.steps)
    result = {
        "draws": words.draws,
        "coordinates": coordinates,
        "small": small,
        "real": {str(stage): rows for stage, rows in real.items()},
    }
    (words.out / "gradients.json").write_text(json.dumps(result, indent=2) + "\n")
    text = tables(result)
    (words.out / "table.md").write_text(text + "\n")
    figure(words.out / "gradients.png", result)
    print("\n" + text)


if __name__ == "__main__":
    main()
