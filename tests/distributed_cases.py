"""What test_distributed compares: trainings and draws, by one process or by a team of two.

Run by torchrun with the folder of the results; the first process writes them. All is in float64,
so that the rounding of other sums, which a training makes larger step by step, stays small.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from pyro.distributions import Gamma, Normal, TorchDistribution
from torch import Tensor

from ngvae_pyro import contexts, distributed, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.distributed import ALONE, Team
from ngvae_pyro.distributions import GammaMixture, GeneralizedGamma, NormalGammaMixture
from ngvae_pyro.distributions.location_scale import Epanechnikov, GaussianMixture
from ngvae_pyro.distributions.poisson import RelaxedPoisson
from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import (
    AdversarialSpec,
    ArdPriorSpec,
    FitSpec,
    MLPSpec,
    ModelSpec,
    Move,
    Ramp,
    ScheduleSpec,
)
from ngvae_pyro.training import actions
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.training.trainer import fit
from ngvae_pyro.variants import run_spec

SMALL = MLPSpec(width=16, depth=2)
FIT = FitSpec(steps=12, batch_size=16, monitor_every=6, device="cpu")

# Of untrained latents some are informative, so that deaths are tried.
MOVES = ScheduleSpec(
    z=Ramp(initial=5.0, end=0.3),
    moves=(
        Move(kind="growth", at=0.1, steps=2),
        Move(kind="death", at=0.2, steps=4),
        Move(kind="birth", at=0.6, steps=4),
    ),
    silence=0.8,
    independent=0.9,
)

# name: (model, guide, changes of the guide, changes of the fit).
TRAININGS = {
    "relaxed": ("normal_gamma", "relaxed", {"schedule": MOVES}, {}),
    "mixture": ("normal_gamma", "mixture", {"schedule": ScheduleSpec(exact=0.5)}, {}),
    "score": ("normal_gamma", "score", {}, {}),
    "generalized": ("normal_gamma", "generalized", {}, {}),
    "flat": ("normal_gamma", "flat", {"draws": 3}, {}),
    "poisson": ("poisson", "poisson", {}, {}),
    "ard": (ModelSpec(prior=ArdPriorSpec(codes=40)), "ard", {}, {}),
    "epanechnikov": ("gaussian", "epanechnikov", {}, {}),
    "gaussian_mixture": ("gaussian", "gaussian_mixture", {}, {}),
    **{name: ("gaussian", name, {}, {}) for name in ("capacity", "beta_tc", "dip_ii", "gamix")},
    "factor": ("gaussian", "factor", {"objective": {"width": 16, "depth": 2}}, {}),
    "particles": ("normal_gamma", "score", {}, {"particles": 2}),
    "streamed": ("normal_gamma", "relaxed", {}, {"resident_bytes": 1}),
    "adversary": (
        *("gaussian", "beta_tc", {}),
        {"adversarial": AdversarialSpec(channels=4, begin=0.5)},
    ),
}


@contextmanager
def double_precision() -> Iterator[None]:
    """Weights, noise and images in float64, which the package itself holds to float32."""
    to_unit = ImageData.to_unit
    before, set_default_dtype = torch.get_default_dtype(), torch.set_default_dtype
    set_default_dtype(torch.float64)
    with (
        patch.object(ImageData, "to_unit", staticmethod(lambda images: to_unit(images).double())),
        patch.object(torch, "set_default_dtype", lambda dtype: None),
        patch.object(contexts, "_check_float32", lambda *modules: None),
    ):
        yield
    set_default_dtype(before)


def training(name: str, team: Team = ALONE) -> dict[str, Tensor]:
    """Weights after some steps, the losses on the way, and where the generator then stands."""
    model_name, guide_name, changes, changed = TRAININGS[name]
    torch.manual_seed(0)
    model = load_model(model_name, (3, 32, 32), latent_size=4, decoder=SMALL)
    guide = load_guide(guide_name, model, encoder=SMALL, **changes)
    spec = FIT.model_copy(update=changed)
    # Hardly trained codes have any dimension.
    with patch.object(actions, "_are_folded", lambda trainer: True):
        result = fit(model, guide, sprites(120), spec, progress=False, team=team)
    moves = [[m.latent, m.step, m.loss_without, m.loss_with] for m in result.moves]
    return {
        **{f"model.{key}": value for key, value in model.state_dict().items()},
        **{f"guide.{key}": value for key, value in guide.state_dict().items()},
        "losses": torch.tensor([row["loss"] for row in result.history]),
        "moves": torch.tensor(moves),
        "negentropy": torch.tensor(result.rotation.negentropy if result.rotation else []),
    }


GAMMAS = {"concentration": (5.0, 50.0), "rate": (0.5, 50.0)}

# Distributions of the latent sites, by a real and a positive parameter.
DISTRIBUTIONS: dict[str, Callable[[Tensor, Tensor], TorchDistribution]] = {
    "Normal": Normal,
    "Gamma": lambda a, b: Gamma(a.exp(), b),
    "GeneralizedGamma": lambda a, b: GeneralizedGamma(a.exp(), b),
    "GammaMixture": lambda a, b: GammaMixture(logits=a + b.log(), **GAMMAS),
    "NormalGammaMarginal": lambda a, b: NormalGammaMixture(a, logits=b.log(), **GAMMAS).marginal,
    "GaussianMixture": lambda a, b: GaussianMixture(
        torch.stack((a, -a), -1), torch.stack((b, 2 * b), -1), torch.stack((a * b, b), -1)
    ),
    "Epanechnikov": Epanechnikov,
    "RelaxedPoisson": lambda a, b: RelaxedPoisson(a.exp() * b, 0.1),
}


def draws(name: str, shape: tuple[int, ...], team: Team = ALONE) -> dict[str, Tensor]:
    """A draw at sites of a shape (..., B, K), its density, and gradients, of the whole batch."""
    generator, axis = torch.Generator().manual_seed(1), len(shape) - 2
    a = torch.randn(shape, generator=generator)
    b, weights = 0.5 + torch.rand((2, *shape), generator=generator)
    a, b, weights = (team.rows(t, axis) for t in (a, b, weights))
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    own = DISTRIBUTIONS[name](a, b).to_event(1)
    torch.manual_seed(2)
    whole = team.whole(own, axis)
    value = team.rows(whole(), axis)
    density = team.rows(whole.log_prob(team.whole(value.detach(), axis)), axis)
    ((weights * value).sum() + (density * weights[..., 0]).sum()).backward()
    results = {"value": value, "density": density, "a": a.grad, "b": b.grad}
    # What comes next tells whether as many random numbers were taken.
    results["next"] = team.rows(torch.rand(shape), axis)
    return {key: team.whole(tensor.detach(), axis) for key, tensor in results.items()}


def failures(folder: Path, team: Team) -> list[str]:
    """What this process is told where a run cannot be written, cannot be shared, and diverges."""
    fits = {
        "written": {},
        "shared": {"batch_size": 9},
        "diverged": {"learning_rate": 1e30, "steps": 40},
    }
    if team.leads:
        (folder / "written").mkdir()
    lines = []
    for name, changes in fits.items():
        values = {"fit": {"device": "cpu", **changes}, "data": {"size": 120}}
        spec = run_spec("gaussian", "gaussian", values, "test")
        try:
            runs.train(spec, folder / name, progress=False, team=team)
        except (UserError, NonFiniteLoss) as error:
            lines.append(str(error))
    return lines


SHAPES = {"": (6, 3), " with particles": (2, 6, 3)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.joined() as team:
        lines = failures(folder, team)
        (folder / f"failures{team.rank}.json").write_text(json.dumps(lines))
        with double_precision():
            compared(folder, team)


def compared(folder: Path, team: Team) -> None:
    for name in TRAININGS:
        results = training(name, team)
        if team.leads:
            torch.save(results, folder / f"{name}.pt")
    for name in DISTRIBUTIONS:
        for suffix, shape in SHAPES.items():
            results = draws(name, shape, team)
            if team.leads:
                torch.save(results, folder / f"{name}{suffix}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
