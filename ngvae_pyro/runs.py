"""Run folders: everything that a training leaves behind, and how to read it again."""

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ngvae_pyro import _arviz, data, diagnostics, memory, plots, report
from ngvae_pyro.distributed import ALONE, Team
from ngvae_pyro.errors import UserError
from ngvae_pyro.files import read_text
from ngvae_pyro.guide import Guide, load_guide
from ngvae_pyro.images import ImageData
from ngvae_pyro.model import VAE, load_model
from ngvae_pyro.records import History, Metrics, Record
from ngvae_pyro.selection import MoveRecord
from ngvae_pyro.specs import DataSpec, RunSpec, SavedRun, parse
from ngvae_pyro.steps import NonFiniteLoss
from ngvae_pyro.svi import Fit, fit, resolve_device, seeded


def load_data(spec: RunSpec, device: torch.device | str = "cpu") -> tuple[ImageData, ImageData]:
    """(train, held-out) images of a run, on the CPU; both follow from the run's seeds.

    Args:
        spec: What is run. Its own device is not looked at: a run may be read on another machine.
        device: Where images are rendered, if they are.
    """
    seed = data_seed(spec)
    return load_images(spec.data, seed, device).split(spec.data.held_out, seed)


def data_seed(spec: RunSpec) -> int:
    """The seed of the images, by default that of the training."""
    return spec.fit.seed if spec.data.seed is None else spec.data.seed


def load_images(spec: DataSpec, seed: int, device: torch.device | str = "cpu") -> ImageData:
    """All images that a spec names, on the CPU; its own seed is not looked at."""
    return data.load(
        spec.name,
        seed=seed,
        n=spec.size,
        resolution=spec.resolution,
        root=spec.root,
        download=spec.download,
        device=device,
    )


def load_pair(spec: RunSpec, images: ImageData | Sequence[int]) -> tuple[VAE, Guide]:
    """The untrained model and guide of a run; their first weights follow from its seed.

    Args:
        spec: What is run.
        images: Training images, or their shape (C, H, W) where the pair is only read.

    Raises:
        UserError: If the two do not fit each other, or the pair does not fit into memory.
    """
    if isinstance(images, ImageData):
        device = resolve_device(spec.fit.device)
        memory.check_pair(spec, images.image_shape, len(images), device)
    else:
        memory.check_pair(spec, images)
    with seeded(spec.fit.seed, torch.device("cpu")):
        model = load_model(spec.model, images)
        return model, load_guide(spec.guide, model)


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that appears under its name only when the block has ended well.

    Raises:
        UserError: If the folder exists and may not be overwritten, or cannot be written.
    """
    if folder.exists() and not overwrite:
        raise UserError(f"{folder}: already exists; choose another --out or pass --overwrite")
    if folder.exists() and not (folder / "config.toml").is_file():
        raise UserError(f"{folder}: is not a run folder (no config.toml); not overwritten")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_weights(folder: Path, fit: Fit, spec: RunSpec, image_shape: tuple[int, ...]) -> SavedRun:
    """Write ``config.toml``, which is returned, and ``weights.safetensors``.

    They are enough to build the pair again.
    """
    saved = SavedRun(
        **{
            **{name: getattr(spec, name) for name in RunSpec.model_fields},
            # The model's own spec is the resolved one: what was trained.
            "model": fit.model.spec,
            "image_shape": image_shape,
            "versions": diagnostics.versions(),
        }
    )
    values = saved.model_dump(mode="json", exclude_none=True)
    (folder / "config.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    tensors = {}
    for part, module in (("model", fit.model), ("guide", fit.guide)):
        for name, tensor in module.state_dict().items():
            tensors[f"{part}.{name}"] = tensor.cpu().contiguous()
    # Not `save_file`, which makes the file readable by its owner alone whatever the umask says.
    (folder / "weights.safetensors").write_bytes(save(tensors))
    return saved


def save_run(
    folder: str | Path,
    fit: Fit,
    spec: RunSpec,
    held_out: ImageData,
) -> dict[str, Any]:
    """Write configuration, weights, metrics, history, posterior draws, figures and report.

    Args:
        folder: An existing folder.
        fit: From :func:`ngvae_pyro.fit`.
        spec: What was run.
        held_out: Images that were not trained on.

    Returns:
        The metrics, as written to ``metrics.json``.
    """
    folder = Path(folder)
    saved = save_weights(folder, fit, spec, held_out.image_shape)
    metrics = diagnostics.evaluate(fit, held_out, seed=spec.fit.seed)
    write_json(folder / "metrics.json", metrics)
    history = {"rows": fit.history, "moves": [asdict(m) for m in fit.moves]}
    write_json(folder / "history.json", history)
    attrs = {
        "model": spec.model_name,
        "guide": spec.guide_name,
        "data": spec.data.name,
        "seed": spec.fit.seed,
        **{f"version {name}": text for name, text in diagnostics.versions().items()},
    }
    posterior = diagnostics.to_arviz(fit, held_out, seed=spec.fit.seed, attrs=attrs)
    posterior.to_netcdf(str(folder / "posterior.nc"), engine="h5netcdf")
    plots.save_all(folder / "figures", fit, held_out, metrics)
    report.write_run_report(folder, saved, metrics)
    return metrics


def train(
    spec: RunSpec,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    stage: Callable[[str], AbstractContextManager[Any]] = lambda text: nullcontext(),
    team: Team = ALONE,
) -> tuple[Fit, dict[str, Any]]:
    """Train what a spec says and write the run folder, whole or not at all.

    Args:
        spec: What to run.
        out: The run folder.
        overwrite: Whether an existing run folder is replaced.
        progress: Show the training.
        stage: Shows what is done before and after the training.
        team: The processes that train together; the first of them writes the folder and shows.

    Returns:
        The fit and its metrics.

    Raises:
        UserError: If something that the spec asks for is not there; nothing is written.
        NonFiniteLoss: If the training diverges; the folder then holds configuration and weights.
    """
    # Everything that can be wrong is looked at before the first step.
    with ExitStack() as stack:
        with team.together():
            team.check_device(spec.fit.device)
            device = resolve_device(spec.fit.device)
            folder = stack.enter_context(new_folder(Path(out), overwrite)) if team.leads else None
        with stage("preparing data"):
            if spec.data.download and team.size > 1:
                # By one process of each machine; the others find it there.
                with team.together():
                    if team.local_rank == 0:
                        load_data(spec, device)
            with team.together():
                images, held_out = load_data(spec, device)
        model, guide = load_pair(spec, images)
        failure, metrics = None, {}
        try:
            shown = progress and team.leads
            result = fit(model, guide, images, spec.fit, progress=shown, team=team)
        except NonFiniteLoss as error:
            failure = error
            if folder is not None:
                save_weights(folder, Fit(model, guide, spec.fit), spec, images.image_shape)
        else:
            if folder is not None:
                with stage("writing the report"):
                    metrics = save_run(folder, result, spec, held_out)
    # The others stay until the folder is there, because torchrun ends all when one has failed.
    metrics = team.agreed(metrics)
    if failure is not None:
        raise failure
    return result, metrics


def load_spec(folder: str | Path) -> SavedRun:
    """``config.toml`` of a run folder.

    Its ``data.download`` is not obeyed: the folder may be another's, and reading it fetches
    nothing.
    """
    path = Path(folder) / "config.toml"
    saved = parse(SavedRun, _read(path, tomllib.loads), str(path))
    return saved.model_copy(update={"data": saved.data.model_copy(update={"download": False})})


def load_run(folder: str | Path, device: str = "auto") -> tuple[Fit, SavedRun]:
    """The trained pair of a run folder, with its history, and what was run.

    Raises:
        UserError: If a file is missing, damaged or does not fit the others.
    """
    folder = Path(folder)
    spec = load_spec(folder)
    model, guide = load_pair(spec, spec.image_shape)
    weights = folder / "weights.safetensors"
    try:
        tensors = load_file(weights)
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UserError(f"{weights}: {name}: expected finite numbers, got NaN or inf")
        for part, module in (("model", model), ("guide", guide)):
            own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)}
            module.load_state_dict(own)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{weights}: cannot be loaded: {reason}") from None
    target = resolve_device(device)
    fit = Fit(model.to(target), guide.to(target), spec.fit)
    history = read_json(folder / "history.json", History)
    fit.history, fit.moves = history["rows"], [MoveRecord(**m) for m in history["moves"]]
    metrics = load_metrics(folder)
    if len(metrics["probs"]) != model.latent_size:
        raise UserError(
            f"{folder / 'metrics.json'}: expected {model.latent_size} latents as in config.toml, "
            f"got {len(metrics['probs'])}"
        )
    fit.seconds, fit.steps = metrics["seconds"], metrics["steps"]
    fit.extra_steps = metrics["extra_steps"]
    return fit, spec


def load_metrics(folder: str | Path) -> dict[str, Any]:
    """``metrics.json`` of a run folder."""
    return read_json(Path(folder) / "metrics.json", Metrics)


def load_posterior(folder: str | Path) -> Any:
    """``posterior.nc`` of a run folder as an ArviZ object."""
    path = Path(folder) / "posterior.nc"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        posterior = _arviz.from_netcdf(str(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # Whatever h5netcdf and xarray say of a file that is damaged, or no NetCDF.
        raise UserError(f"{path}: cannot be loaded: {error}") from None
    if not hasattr(posterior, "posterior"):
        raise UserError(f"{path}: cannot be loaded: no group 'posterior'")
    return posterior


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Indented JSON; NaN and infinity are errors, because JSON has neither."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, record: type[Record]) -> dict[str, Any]:
    """A JSON file that holds what a record declares; else a :class:`UserError`."""
    values = _read(path, json.loads)
    fields = record.model_fields
    missing = [key for key in fields if fields[key].is_required() and key not in values]
    if missing:
        raise UserError(f"{path}: damaged or of another version: no key '{missing[0]}'")
    parse(record, values, str(path))
    return values


def _read(path: Path, loads: Callable[[str], Any]) -> dict[str, Any]:
    """The table that a file holds."""
    try:
        values = loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # Also of numbers too long to be read, and of tables in tables in tables.
        raise UserError(f"{path}: damaged: {error}") from None
    # An array, or a number, has none of the keys that are looked for next.
    return values if isinstance(values, dict) else {}
