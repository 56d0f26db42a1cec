"""Run folders: everything that a training leaves behind, and how to read it again."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ngvae_pyro import _arviz, data, diagnostics, files, memory, plots, provenance, report
from ngvae_pyro.checkpoints import Checkpoints
from ngvae_pyro.distributed import ALONE, Team
from ngvae_pyro.errors import UserError
from ngvae_pyro.files import read_text
from ngvae_pyro.guide import Guide, load_guide
from ngvae_pyro.images import ImageData, check_images
from ngvae_pyro.model import VAE, load_model
from ngvae_pyro.records import History, Metrics, Record, RunRecord
from ngvae_pyro.selection import MoveRecord
from ngvae_pyro.specs import DataSpec, FitSpec, RunSpec, SavedRun, parse
from ngvae_pyro.steps import NonFiniteLoss
from ngvae_pyro.svi import Fit, fit, resolve_device, seeded

Stage = Callable[[str], AbstractContextManager[Any]]

CHECKPOINTS, METRICS = "checkpoints", "metrics.json"
# What a run folder may have in it, the scores of other images among them; all else is somebody's.
_OF_A_RUN = re.compile(
    rf"{CHECKPOINTS}|figures|.*\.(toml|json|csv|nc|safetensors|html|partial|DS_Store)"
)


def load_data(spec: RunSpec, device: torch.device | str = "cpu") -> tuple[ImageData, ImageData]:
    """(train, held-out) images of a run, on the CPU; both follow from the run's seeds.

    Args:
        spec: What is run. Its own device is not looked at: a run may be read on another machine.
        device: Where images are rendered, if they are.
    """
    seed = data_seed(spec)
    return load_images(spec.data, seed, device).split(spec.data.held_out, seed, in_place=True)


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


def _check_place(folder: Path, overwrite: bool) -> None:
    """Raise a UserError if a run folder cannot be put there."""
    if not folder.exists():
        return
    if not (folder / "config.toml").is_file():
        raise UserError(
            f"{folder}: already exists and is not a run folder (no config.toml); "
            "choose another --out"
        )
    foreign = [path for path in sorted(folder.iterdir()) if not _OF_A_RUN.fullmatch(path.name)]
    if overwrite and foreign:
        raise UserError(f"{foreign[0]}: is not of a run; move it, or choose another --out")
    if not overwrite:
        hint = "choose another --out or pass --overwrite"
        if unfinished(folder):
            hint += f"; ngvae train --resume {folder} goes on with it"
        raise UserError(f"{folder}: already exists; {hint}")


def saved_run(spec: RunSpec, model: VAE, image_shape: tuple[int, ...]) -> SavedRun:
    """What ``config.toml`` holds: enough to build the pair of a run again."""
    return SavedRun(
        **{
            **{name: getattr(spec, name) for name in RunSpec.model_fields},
            # The model's own spec is the resolved one: what is trained.
            "model": model.spec,
            "image_shape": image_shape,
            "versions": provenance.versions(),
        }
    )


def save_config(folder: Path, saved: SavedRun) -> None:
    """Write ``config.toml``."""
    values = saved.model_dump(mode="json", exclude_none=True)
    files.write(folder / "config.toml", tomli_w.dumps(values).encode())


def save_record(
    folder: Path, spec: RunSpec, starts: list[dict[str, Any]], seconds: float = 0.0
) -> None:
    """Write ``run.json``."""
    record = {"seed": spec.fit.seed, "seconds": seconds, "starts": starts}
    write_json(folder / "run.json", record)


def save_weights(folder: Path, model: VAE, guide: Guide) -> None:
    """Write ``weights.safetensors``."""
    tensors = {}
    for part, module in (("model", model), ("guide", guide)):
        for name, tensor in module.state_dict().items():
            tensors[f"{part}.{name}"] = tensor.cpu().contiguous()
    # Not `save_file`, which makes the file readable by its owner alone whatever the umask says.
    files.write(folder / "weights.safetensors", save(tensors))


def save_run(
    folder: str | Path,
    fit: Fit,
    spec: RunSpec,
    held_out: ImageData,
) -> dict[str, Any]:
    """Write configuration, weights, metrics, history, posterior draws, figures and report.

    ``run.json`` says where the result comes from: the seed, the seconds of the training, and for
    each of the starts that it took the command line, device, threads, system and versions.

    Args:
        folder: An existing folder.
        fit: From :func:`ngvae_pyro.fit`.
        spec: What was run.
        held_out: Images that were not trained on.

    Returns:
        The metrics, as written to ``metrics.json``.
    """
    folder = Path(folder)
    check_images(held_out, fit.model.image_shape)
    saved = saved_run(spec, fit.model, held_out.image_shape)
    save_config(folder, saved)
    save_weights(folder, fit.model, fit.guide)
    metrics = diagnostics.evaluate(fit, held_out, seed=spec.fit.seed)
    write_json(folder / METRICS, metrics)
    history = {"rows": fit.history, "moves": [asdict(m) for m in fit.moves]}
    write_json(folder / "history.json", history)
    save_record(folder, spec, fit.starts, fit.seconds)
    attrs = {
        "model": spec.model_name,
        "guide": spec.guide_name,
        "data": spec.data.name,
        "seed": spec.fit.seed,
        **{f"version {name}": text for name, text in provenance.versions().items()},
    }
    posterior = diagnostics.to_arviz(fit, held_out, seed=spec.fit.seed, attrs=attrs)
    _arviz.to_netcdf(posterior, folder / "posterior.nc")
    plots.save_all(folder / "figures", fit, held_out, metrics)
    report.write_run_report(folder, saved, metrics)
    return metrics


# Training ------------------------------------------------------------------------------------


def train(
    spec: RunSpec,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    stage: Stage = lambda text: nullcontext(),
    team: Team = ALONE,
) -> tuple[Fit, dict[str, Any]]:
    """Train what a spec says and write the run folder.

    The folder appears after the first step, with a checkpoint in it. From then on :func:`resume`
    goes on with it whatever happens; it is :func:`finished` when its ``metrics.json`` is there.

    Args:
        spec: What to run.
        out: The run folder.
        overwrite: Whether an existing run folder is replaced, when the new one appears.
        progress: Show the training.
        stage: Shows what is done before and after the training.
        team: The processes that train together; the first of them writes the folder and shows.

    Returns:
        The fit and its metrics.

    Raises:
        UserError: If something that the spec asks for is not there, and nothing is written; or if
            the disk refuses to take something, and the last checkpoint is kept.
        NonFiniteLoss: If the training diverges; the folder then holds configuration and weights.
        Interrupted: If SIGINT or SIGTERM came; the folder then holds a checkpoint of that moment.
    """
    out = Path(out)
    # Everything that can be wrong is looked at before the first step.
    with ExitStack() as stack:
        with team.together():
            team.check_device(spec.fit.device)
            device = resolve_device(spec.fit.device)
            new = None
            if team.leads:
                new = files.NewFolder(out, overwrite)
                _check_place(out, overwrite)
                stack.enter_context(new)
        images, held_out = _load_shared(spec, device, stage, team)
        model, guide = load_pair(spec, images)
        checkpoints = Checkpoints(out / CHECKPOINTS, spec.fit.checkpoint_every)
        if new is not None:
            saved = saved_run(spec, model, images.image_shape)
            with files.writing(out):
                save_config(new.path, saved)
            save_record(new.path, spec, [provenance.here(device, team.size)])
            checkpoints = Checkpoints(
                new.path / CHECKPOINTS,
                spec.fit.checkpoint_every,
                appear=lambda: new.appear() / CHECKPOINTS,
            )
        result, failure = _fit(spec, model, guide, images, checkpoints, progress, team)
        if failure is not None and new is not None:
            new.appear()
    return _end(spec, out, result, failure, held_out, stage, team)


def resume(
    folder: str | Path,
    *,
    device: str | None = None,
    download: bool = False,
    progress: bool = True,
    stage: Stage = lambda text: nullcontext(),
    team: Team = ALONE,
) -> tuple[Fit, dict[str, Any]]:
    """Go on with a training from the newest checkpoint of its run folder.

    On the same machine, with as many threads, the result is to the last bit that of a training
    without interruption.

    Args:
        folder: The run folder.
        device: Another name for its device, of the same kind.
        download: Fetch missing data, whatever its configuration says.
        progress, stage, team: As for :func:`train`.

    Returns:
        The fit and its metrics. Of a finished run they are read, and nothing is done.

    Raises:
        UserError: If there is no checkpoint, or one that is damaged, of another configuration, of
            other images or of other versions; nothing is changed then.
        NonFiniteLoss, Interrupted: As :func:`train`.
    """
    folder = Path(folder)
    with team.together():
        if finished(folder):
            fit, _ = load_run(folder, device or "auto")
            return fit, load_metrics(folder)
        spec: RunSpec = load_spec(folder)
        checkpoints = Checkpoints(folder / CHECKPOINTS, spec.fit.checkpoint_every)
        if not checkpoints.names():
            raise UserError(f"{folder}: holds no checkpoint to go on from")
        if device is not None:
            named = parse(FitSpec, {"device": device}, "command line").device
            spec = spec.model_copy(update={"fit": spec.fit.model_copy(update={"device": named})})
        data = spec.data.model_copy(update={"download": download})
        spec = spec.model_copy(update={"data": data})
        team.check_device(spec.fit.device)
        target = resolve_device(spec.fit.device)
    images, held_out = _load_shared(spec, target, stage, team)
    model, guide = load_pair(spec, images)
    result, failure = _fit(spec, model, guide, images, checkpoints, progress, team, resume=True)
    return _end(spec, folder, result, failure, held_out, stage, team)


def _load_shared(
    spec: RunSpec, device: torch.device, stage: Stage, team: Team
) -> tuple[ImageData, ImageData]:
    """(train, held-out) images, downloaded by one process of each machine if they are to be."""
    with stage("preparing data"):
        if spec.data.download and team.size > 1:
            with team.together():
                if team.local_rank == 0:
                    load_data(spec, device)
        with team.together():
            return load_data(spec, device)


def _fit(
    spec: RunSpec,
    model: VAE,
    guide: Guide,
    images: ImageData,
    checkpoints: Checkpoints,
    progress: bool,
    team: Team,
    resume: bool = False,
) -> tuple[Fit, NonFiniteLoss | None]:
    """The fit, and what ended it early if it diverged."""
    try:
        result = fit(
            model,
            guide,
            images,
            spec.fit,
            progress=progress and team.leads,
            team=team,
            checkpoints=checkpoints,
            resume=resume,
        )
    except NonFiniteLoss as error:
        return Fit(model, guide, spec.fit), error
    return result, None


def _end(
    spec: RunSpec,
    folder: Path,
    result: Fit,
    failure: NonFiniteLoss | None,
    held_out: ImageData,
    stage: Stage,
    team: Team,
) -> tuple[Fit, dict[str, Any]]:
    """Add the results to a run folder, or the weights of a training that diverged."""
    metrics: dict[str, Any] = {}
    # The others stay until the folder is whole, because torchrun ends all when one has failed.
    with team.together():
        if team.leads and failure is not None:
            with files.writing(folder):
                save_weights(folder, result.model, result.guide)
                # From these it would only diverge again.
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        elif team.leads:
            again = f"; ngvae train --resume {folder} writes them again"
            with stage("writing the report"), files.writing(folder / "metrics.json", again):
                metrics = _add_results(folder, result, spec, held_out)
    if failure is not None:
        raise failure
    return result, team.agreed(metrics)


def _add_results(folder: Path, result: Fit, spec: RunSpec, held_out: ImageData) -> dict[str, Any]:
    """All that :func:`save_run` writes; ``metrics.json`` comes last, which says that it is done."""
    results = folder / ".results.partial"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    try:
        metrics = save_run(results, result, spec, held_out)
        for path in sorted(results.iterdir(), key=lambda path: path.name == METRICS):
            place = folder / path.name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            path.replace(place)
        files.flush(folder)
    finally:
        shutil.rmtree(results, ignore_errors=True)
    return metrics


# Reading -------------------------------------------------------------------------------------


def finished(folder: str | Path) -> bool:
    """Whether a folder is a run that was trained to its end and has its results."""
    return (Path(folder) / METRICS).is_file()


def unfinished(folder: str | Path) -> bool:
    """Whether a folder is a run that :func:`resume` can go on with."""
    return not finished(folder) and (Path(folder) / CHECKPOINTS).is_dir()


def _check_finished(folder: Path) -> None:
    if unfinished(folder):
        raise UserError(
            f"{folder}: its training is not finished; ngvae train --resume {folder} goes on with it"
        )


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
    _check_finished(folder)
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
    metrics, record = load_metrics(folder), load_record(folder)
    if len(metrics["probs"]) != model.latent_size:
        raise UserError(
            f"{folder / METRICS}: expected {model.latent_size} latents as in config.toml, "
            f"got {len(metrics['probs'])}"
        )
    fit.steps, fit.extra_steps = metrics["steps"], metrics["extra_steps"]
    fit.seconds, fit.starts = record["seconds"], record["starts"]
    return fit, spec


def load_metrics(folder: str | Path) -> dict[str, Any]:
    """``metrics.json`` of a run folder."""
    return read_json(Path(folder) / METRICS, Metrics)


def load_record(folder: str | Path) -> dict[str, Any]:
    """``run.json`` of a run folder: its seed, its seconds and where it was trained."""
    return read_json(Path(folder) / "run.json", RunRecord)


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
    """Indented JSON, there whole or not at all.

    Raises:
        UserError: For NaN and infinity, which JSON does not have, or if it cannot be written.
    """
    try:
        text = json.dumps(values, indent=2, allow_nan=False)
    except ValueError:
        raise UserError(f"{path}: not written, because a value is NaN or infinite") from None
    with files.writing(path):
        files.write(path, f"{text}\n".encode())


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
