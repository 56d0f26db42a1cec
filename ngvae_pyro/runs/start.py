"""Training into a run folder, and resuming it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from ngvae_pyro import files, locks, provenance
from ngvae_pyro.data.declared import load_data
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributed import ALONE, Team
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.extras import check_installed
from ngvae_pyro.fitted import Fit
from ngvae_pyro.guide import Guide
from ngvae_pyro.machine import resolve_device
from ngvae_pyro.model import VAE
from ngvae_pyro.runs.folder import (
    _UNFINISHED,
    CHECKPOINTS,
    METRICS,
    RECORD,
    RESULTS,
    _there,
    check_own,
    claim,
    contents,
    finished,
    load_metrics,
    load_record,
    load_spec,
    own_files,
    unfinished,
    write_json,
)
from ngvae_pyro.runs.reading import check_recorded, load_pair, load_run
from ngvae_pyro.runs.saving import _write_run, save_config, save_record, save_weights, saved_run
from ngvae_pyro.specs import FitSpec, RunSpec, parse
from ngvae_pyro.training.checkpoints import Checkpoints
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.training.trainer import fit

Stage = Callable[[str], AbstractContextManager[Any]]
# Training and held-out images.
Split = tuple[ImageData, ImageData]


def _check_place(folder: Path, overwrite: bool) -> None:
    """Raise a UserError if a run folder cannot be placed there."""
    if not folder.exists():
        return
    if not (folder / "config.toml").is_file():
        raise UserError(
            f"{folder}: already exists and is not a run folder (no config.toml); "
            "choose another --out"
        )
    if not overwrite:
        hint = "choose another --out or pass --overwrite"
        if unfinished(folder):
            hint += f"; ngvae train --resume {folder} goes on with it"
        raise UserError(f"{folder}: already exists; {hint}")


def train(
    spec: RunSpec,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    stage: Stage = lambda text: nullcontext(),
    team: Team = ALONE,
    images: Split | None = None,
) -> tuple[Fit, diagnostics.Metrics]:
    """Train according to a spec and write the run folder.

    The folder appears after the first step, with a checkpoint in it. From then on :func:`resume`
    can continue it whatever happens; it is :func:`~ngvae_pyro.runs.finished` once its
    ``metrics.json`` exists. Until the end the folder is locked against other processes.

    Args:
        spec: The run's spec.
        out: The run folder.
        overwrite: Whether an existing run folder is replaced once the new one appears; a folder
            that holds anything besides the files of its run is never replaced.
        progress: Whether to show the progress of the training.
        stage: Shows the stages before and after the training.
        team: The processes that train together; the first one writes the folder and shows progress.
        images: (training, held-out) images given in Python, instead of those that the spec names;
            the run then records that it was so.

    Returns:
        The fit and its metrics.

    Raises:
        UserError: If something that the spec needs is missing, in which case nothing is written; or
            if the disk refuses a write, in which case the last checkpoint is kept.
        NonFiniteLoss: If the training diverges; the folder then holds configuration and weights.
        Interrupted: On SIGINT, SIGTERM or SIGHUP; the folder then holds a checkpoint of that
            moment.
    """
    out = Path(out)
    # Everything that can be wrong is checked before the first step.
    with ExitStack() as stack:
        with team.together():
            team.check_device(spec.fit.device)
            device = resolve_device(spec.fit.device)
            new = None
            if team.leads:
                new = files.NewFolder(out, overwrite, contents)
                stack.enter_context(locks.held(out))
                new.recover()
                _check_place(out, overwrite)
                stack.enter_context(new)
        given = images is not None
        training, held_out = images or _load_shared(spec, device, stage, team)
        model, guide = load_pair(spec, training)
        if given:
            saved = saved_run(spec, model, training.image_shape, training.form)
            spec = saved.model_copy(update={"images": "given in Python"})
        checkpoints = Checkpoints(out / CHECKPOINTS, spec.fit.checkpoint_every)
        if new is not None:
            saved = saved_run(spec, model, training.image_shape, training.form)
            with files.writing(out):
                save_config(new.path, saved)
            save_record(new.path, spec, [provenance.here(device, team.size)], held_out, device)
            checkpoints = Checkpoints(
                new.path / CHECKPOINTS,
                spec.fit.checkpoint_every,
                appear=lambda: new.appear() / CHECKPOINTS,
            )
        result, failure = _fit(spec, model, guide, training, checkpoints, progress, team)
        if failure is not None and new is not None:
            new.appear()
        return _end(spec, out, result, failure, held_out, stage, team)


def resume(
    folder: str | Path,
    *,
    device: str | None = None,
    data_root: str | None = None,
    download: bool = False,
    progress: bool = True,
    stage: Stage = lambda text: nullcontext(),
    team: Team = ALONE,
    images: Split | None = None,
) -> tuple[Fit, diagnostics.Metrics]:
    """Resume a training from the newest checkpoint in its run folder.

    On the same machine and with the same number of threads, the result equals that of an
    uninterrupted training to the last bit.

    Args:
        folder: The run folder.
        device: Another device of the same kind, instead of the configured one.
        data_root: Folder of torchvision's data, if not the configured one.
        download: Whether to download missing data, whatever the configuration says.
        progress: As for :func:`train`.
        stage: As for :func:`train`.
        team: As for :func:`train`.
        images: As for :func:`train`, if they were given in Python.

    Returns:
        The fit and its metrics; for a finished run these are only read.

    Raises:
        UserError: If there is no checkpoint, or it is damaged or belongs to another configuration,
            other images or other versions. Nothing is changed then.
        NonFiniteLoss: As :func:`train`.
        Interrupted: As :func:`train`.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        with team.together():
            # If it is no run, or a finished one, nothing is written and nothing locked.
            load_spec(folder)
            if team.leads and not finished(folder):
                stack.enter_context(locks.held(folder))
            if finished(folder):
                fit, _ = load_run(folder, device or "auto")
                return fit, load_metrics(folder)
            spec: RunSpec = load_spec(folder)
            checkpoints = Checkpoints(folder / CHECKPOINTS, spec.fit.checkpoint_every)
            checkpoints.check_links()
            if not checkpoints.names():
                raise UserError(f"{folder}: holds no checkpoint to go on from")
            # Checked now rather than after all the steps.
            files.check_no_link(folder, _UNFINISHED)
            check_own(folder, RESULTS)
            if device is not None:
                named = parse(FitSpec, {"device": device}, "command line").device
                spec = spec.model_copy(
                    update={"fit": spec.fit.model_copy(update={"device": named})}
                )
            root = spec.data.root if data_root is None else data_root
            data = spec.data.model_copy(update={"root": root, "download": download})
            spec = spec.model_copy(update={"data": data})
            team.check_device(spec.fit.device)
            target = resolve_device(spec.fit.device)
        training, held_out = images or _load_shared(spec, target, stage, team)
        with team.together():
            check_recorded(folder, spec, (training, held_out), target)
        model, guide = load_pair(spec, training)
        result, failure = _fit(
            spec, model, guide, training, checkpoints, progress, team, resume=True
        )
        return _end(spec, folder, result, failure, held_out, stage, team)


def _load_shared(
    spec: RunSpec, device: torch.device, stage: Stage, team: Team
) -> tuple[ImageData, ImageData]:
    """Load (training, held-out) images; if necessary, one process per machine downloads them."""
    # Checked now, although the factors of the images are only used after the last step.
    check_installed("metrics")
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
    """The fit, and the error that ended it early if it diverged."""
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
        return Fit(model, guide, spec.fit, form=images.form), error
    return result, None


def _end(
    spec: RunSpec,
    folder: Path,
    result: Fit,
    failure: NonFiniteLoss | None,
    held_out: ImageData,
    stage: Stage,
    team: Team,
) -> tuple[Fit, diagnostics.Metrics]:
    """Add the results to a run folder, or the weights of a training that diverged."""
    metrics: diagnostics.Metrics | None = None
    # The others wait until the folder is complete, because torchrun ends them all if one fails.
    with team.together():
        if team.leads and failure is not None:
            with files.writing(folder):
                claim(folder, ["weights.safetensors"])
                save_weights(folder, result)
                # Resuming from these would only diverge again.
                Checkpoints(folder / CHECKPOINTS).clear()
        elif team.leads:
            again = f"; ngvae train --resume {folder} writes them again"
            with stage("writing the report"), files.writing(folder / "metrics.json", again):
                metrics = _add_results(folder, result, spec, held_out)
    if failure is not None:
        raise failure
    return result, team.agreed(metrics)


def _add_results(
    folder: Path, result: Fit, spec: RunSpec, held_out: ImageData
) -> diagnostics.Metrics:
    """Write what :func:`save_run` writes; ``metrics.json``, the mark of a finished run, is last."""
    results = folder / _UNFINISHED
    files.check_no_link(folder, _UNFINISHED)
    files.remove(results, _results)
    results.mkdir()
    try:
        metrics = _write_run(results, result, spec, held_out)
        names = {path.relative_to(results).as_posix() for path in _results(results)[0]}
        names = _there(results, names)
        check_own(folder, names)
        # The record comes first, and also lists the files that it listed before.
        known = names | _there(folder, own_files(folder))
        write_json(results / RECORD, {**load_record(results), "files": sorted(known)})
        for name in sorted(names, key=lambda name: (name == METRICS) - (name == RECORD)):
            place = folder / name
            if place.parent != folder:
                files.make_folder(place.parent)
            elif name == METRICS:
                for parent in {(folder / each).parent for each in names}:
                    files.flush(parent)
            (results / name).replace(place)
        files.flush(folder)
    finally:
        files.remove(results, _results)
    return metrics


def _results(folder: Path) -> files.Contents:
    """The contents of a folder of results."""
    own = {path.as_posix() for path in files.with_partial(*RESULTS)}
    return files.contents(folder, lambda name: name in own or name == "figures/")
