"""Reading a run folder: its pair, its images and its posterior draws."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ngvae_pyro import _arviz, provenance
from ngvae_pyro.axes import Rotation
from ngvae_pyro.data.forms import VOLUMES, Covariate, Form, units_shape
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import Fit, MoveRecord
from ngvae_pyro.guide import Guide, load_guide
from ngvae_pyro.machine import resolve_device, seeded
from ngvae_pyro.model import VAE, load_model
from ngvae_pyro.own import rebuilt
from ngvae_pyro.records import History
from ngvae_pyro.specs import OwnGuideSpec, OwnPriorSpec, RunSpec, SavedRun
from ngvae_pyro.training import memory

with needed("train"):
    from safetensors import SafetensorError
    from safetensors.torch import load_file
from ngvae_pyro.data.declared import load_data, rendered
from ngvae_pyro.runs.folder import (
    METRICS,
    UNITS,
    _check_finished,
    load_metrics,
    load_record,
    load_spec,
    read_json,
)


def load_pair(
    spec: RunSpec, images: ImageData | Sequence[int], covariates: int = 0
) -> tuple[VAE, Guide]:
    """Build the untrained model and guide of a run; its seed determines their initial weights.

    Args:
        spec: The run's spec.
        images: Training images, or their shape (C, H, W) if the weights are loaded afterwards.
        covariates: With a shape, how many columns of covariates the networks take, Q.

    Returns:
        (model, guide).

    Raises:
        UserError: If the two do not match, or the pair does not fit into memory.
    """
    if isinstance(spec.model.prior, OwnPriorSpec) or isinstance(spec.guide, OwnGuideSpec):
        return rebuilt(spec, images.image_shape if isinstance(images, ImageData) else images)
    if isinstance(images, ImageData):
        device = resolve_device(spec.fit.device)
        model_spec = spec.model.of_data(missing=images.form.missing, depth=images.form.depth)
        checked = spec.model_copy(update={"model": model_spec})
        memory.check_pair(checked, images.image_shape, len(images), device)
    else:
        memory.check_pair(spec, images)
    with seeded(spec.fit.seed, torch.device("cpu")):
        model = load_model(spec.model, images)
        if covariates:
            # Theirs is among the weights.
            model.condition(torch.zeros(covariates))
        return model, load_guide(spec.guide, model)


def check_recorded(
    folder: Path, spec: RunSpec, images: tuple[ImageData, ImageData], device: torch.device | str
) -> None:
    """Refuse images that are not those of a run.

    A :class:`ngvae_pyro.errors.Notice` says if the run does not record its images, or if sprites
    rendered on another machine may be rounded differently.

    Args:
        folder: The run folder, whose ``run.json`` is read.
        spec: The run's spec.
        images: (training, held-out) images, as the data of the run are now.
        device: The device that rendered them, if they were rendered.

    Raises:
        UserError: If they are other images.
    """
    known, name = load_record(folder).get("images"), spec.data.name
    if known is None:
        warnings.warn(
            f"{folder}: does not say what its images were, as runs of older versions do not: "
            f"whether {name} still holds them is not checked",
            Notice,
            stacklevel=2,
        )
        return
    for key, part in zip(("train", "held_out"), images, strict=True):
        if known[key] is None or known[key] == (digest := part.digest):
            continue
        if rendered(spec.data):
            here = provenance.renderer(torch.device(device))
            if known.get("renderer") != here:
                warnings.warn(
                    f"{folder}: its sprites were rendered by {known.get('renderer')}, and here by "
                    f"{here}: they are the same but for rounding",
                    Notice,
                    stacklevel=2,
                )
                return
        what = {"train": "training", "held_out": "held-out"}[key]
        raise UserError(
            f"{folder}: its {what} images are not those that {name} holds now (SHA-256 "
            f"{known[key][:12]}..., not {digest[:12]}...); put back the file and the [data] of "
            "config.toml that it was trained with, or train again"
        )


def run_images(
    folder: Path, spec: RunSpec, device: torch.device | str = "cpu"
) -> tuple[ImageData, ImageData]:
    """Load the (training, held-out) images of a run folder, and check that they are the run's.

    Raises:
        UserError: If they are missing, or are not those of the run.
    """
    images = load_data(spec, device)
    check_recorded(folder, spec, images, device)
    return images


def load_run(folder: str | Path, device: str = "auto") -> tuple[Fit, SavedRun]:
    """Load the trained pair of a run folder, with its history, and the run's spec.

    Args:
        folder: The run folder.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: If a file is missing, damaged or inconsistent with the others.
    """
    spec = load_spec(folder)
    folder = Path(folder)
    _check_finished(folder)
    coding = (spec.form and spec.form.covariates) or ()
    model, guide = load_pair(spec, spec.image_shape, sum(len(one.classes) or 1 for one in coding))
    weights = folder / "weights.safetensors"
    try:
        tensors = load_file(weights)
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UserError(f"{weights}: {name}: expected finite numbers, got NaN or inf")
        for part, module in (("model", model), ("guide", guide)):
            own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)}
            module.load_state_dict(own)
        form = _form(spec, tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{weights}: cannot be loaded: {reason}") from None
    target = resolve_device(device)
    fit = Fit(model.to(target), guide.to(target), spec.fit, form=form)
    history = read_json(folder / "history.json", History)
    fit.history, fit.moves = history["rows"], [MoveRecord(**m) for m in history["moves"]]
    fit.rotation, fit.skipped = Rotation.read(history.get("rotation")), history.get("skipped", 0)
    metrics, record = load_metrics(folder), load_record(folder)
    if len(metrics["probs"]) != model.latent_size:
        raise UserError(
            f"{folder / METRICS}: expected {model.latent_size} latents as in config.toml, "
            f"got {len(metrics['probs'])}"
        )
    fit.steps, fit.extra_steps = metrics["steps"], metrics["extra_steps"]
    fit.seconds, fit.starts = record["seconds"], record["starts"]
    images = record.get("images") or {}
    fit.schedule, fit.digest = spec.guide.schedule, images.get("train")
    return fit, spec


def _form(spec: SavedRun, tensors: Mapping[str, torch.Tensor]) -> Form:
    """The form of a run's data; runs of older versions have images with channels first.

    Raises:
        RuntimeError: If its units or columns are missing, or do not match its images.
    """
    if spec.form is None:
        return Form()
    units = {name: tensors[f"form.{name}"] for name in UNITS if f"form.{name}" in tensors}
    form = Form(spec.form.layout, spec.form.in_bytes)
    shape = units_shape(form.layout, spec.image_shape)
    whole = len(units) == len(UNITS) or not (units or form.standardised)
    if not whole or any(
        unit.shape != shape or unit.dtype != torch.float64 for unit in units.values()
    ):
        raise RuntimeError(f"form: expected loc and scale, float64 of shape {shape}")
    arrays = {name: unit.numpy() for name, unit in units.items()}
    if units and not (arrays["scale"] > 0).all():
        raise RuntimeError("form.scale: expected numbers above 0")
    columns = spec.form.columns or ()
    one_row = form.layout in ("vectors", "curves")
    if columns and (not one_row or len(columns) != spec.image_shape[2]):
        raise RuntimeError(f"form.columns: expected the names of all columns, got {len(columns)}")
    depth = spec.form.depth or 0
    if bool(depth) != (form.layout in VOLUMES) or (depth and spec.image_shape[1] % depth):
        raise RuntimeError(f"form.depth: expected the number of slices of volumes, got {depth}")
    coding = tuple(Covariate(**one.model_dump()) for one in spec.form.covariates or ())
    missing = bool(spec.form.missing)
    loc, scale = (arrays.get(name) for name in UNITS)
    return Form(form.layout, form.in_bytes, loc, scale, columns, coding, missing, depth)


def load_posterior(folder: str | Path) -> Any:
    """Read ``posterior.nc`` of a run folder as an ArviZ object."""
    path = Path(folder) / "posterior.nc"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        posterior = _arviz.from_netcdf(str(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # The errors of h5netcdf and xarray for a file that is damaged, or is not NetCDF.
        raise UserError(f"{path}: cannot be loaded: {error}") from None
    if not hasattr(posterior, "posterior"):
        raise UserError(f"{path}: cannot be loaded: no group 'posterior'")
    return posterior
