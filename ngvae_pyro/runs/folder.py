"""Run folders: everything that a training leaves behind, and how to read it again."""

import json
import os
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch

from ngvae_pyro import _arviz, files, locks, provenance, variants
from ngvae_pyro.axes import Rotation
from ngvae_pyro.data import sources as data
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributed import ALONE, Team
from ngvae_pyro.errors import Notice, UserError, expect, nearest
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.evaluation.traversals import Support
from ngvae_pyro.extras import check_installed, needed
from ngvae_pyro.files import read_text
from ngvae_pyro.fitted import Fit, check_data, check_fit
from ngvae_pyro.guide import GUIDES, Guide, load_guide
from ngvae_pyro.machine import resolve_device, seeded
from ngvae_pyro.model import MODELS, VAE, load_model
from ngvae_pyro.records import History, Metrics, Record, RunRecord
from ngvae_pyro.report import pages as report
from ngvae_pyro.report import plots
from ngvae_pyro.report.explorer import explore
from ngvae_pyro.specs import DataSpec, FitSpec, FormSpec, RunSpec, SavedRun, parse
from ngvae_pyro.training import memory
from ngvae_pyro.training.checkpoints import Checkpoints, is_own
from ngvae_pyro.training.selection import MoveRecord
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.training.trainer import fit

with needed("cli"):
    import tomli_w

with needed("train"):
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

Stage = Callable[[str], AbstractContextManager[Any]]

CHECKPOINTS, METRICS, RECORD = "checkpoints", "metrics.json", "run.json"
# What a training writes into its run folder, besides checkpoints.
RESULTS = frozenset(
    {
        *("config.toml", "weights.safetensors", METRICS, "history.json", RECORD, "posterior.nc"),
        "report.html",
        *(f"figures/{name}.png" for name in report.RUN_FIGURES),
    }
)
# What later commands add, of the weights that are there.
ADDED = ("evaluation.json", "check.json", "figures/check.png")
# The tensors of a form, where it has units of its own.
UNITS = ("loc", "scale")
# Where the results lie until all of them are there.
_UNFINISHED = ".results.partial"


def load_data(spec: RunSpec, device: torch.device | str = "cpu") -> tuple[ImageData, ImageData]:
    """(train, held-out) images of a run, on the CPU; both follow from the run's seeds.

    Args:
        spec: What is run. Its own device is not looked at: a run may be read on another machine.
        device: Where images are rendered, if they are.

    Raises:
        UserError: If the images are not there, or were given in Python.
    """
    seed = data_seed(spec)
    return load_images(located(spec), seed, device).split(spec.data.held_out, seed, in_place=True)


def located(spec: RunSpec) -> DataSpec:
    """The data of a run; a saved one's relative paths start from the folder it was trained in.

    Where there is nothing, as on another machine, they start from the current folder.

    Raises:
        UserError: If the images were given in Python, and no name leads to them.
    """
    if not isinstance(spec, SavedRun):
        return spec.data
    if spec.images is not None:
        raise UserError(
            f"data '{spec.data.name}': the images of this run were given in Python, and the "
            "command line does not know them; evaluate them there: ng.evaluate(fit, images)"
        )
    found = {}
    for key in paths(spec.data) if spec.folder is not None else ():
        text = getattr(spec.data, key)
        path = Path(spec.folder or "", text)
        if path.exists() or not Path(text).exists():
            found[key] = str(path)
    return spec.data.model_copy(update=found)


def paths(spec: DataSpec) -> list[str]:
    """The keys that are paths: of a file or a folder, or torchvision's folder where it is used."""
    if rendered(spec):
        return []
    return ["root"] if spec.name in data.TORCHVISION else ["name"]


def rendered(spec: DataSpec) -> bool:
    """Whether the images are computed, and read from no file."""
    return spec.name.partition(":")[0] == "sprites"


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
    if not overwrite:
        hint = "choose another --out or pass --overwrite"
        if unfinished(folder):
            hint += f"; ngvae train --resume {folder} goes on with it"
        raise UserError(f"{folder}: already exists; {hint}")


def saved_run(spec: RunSpec, model: VAE, image_shape: tuple[int, ...], form: Form) -> SavedRun:
    """What ``config.toml`` holds: enough to build the pair of a run again."""
    before = spec if isinstance(spec, SavedRun) else None
    return SavedRun(
        **{
            **{name: getattr(spec, name) for name in RunSpec.model_fields},
            # The model's own spec is the resolved one: what is trained.
            "model": model.spec,
            "image_shape": image_shape,
            "form": FormSpec(layout=form.layout, in_bytes=form.in_bytes),
            "folder": (before and before.folder) or _start_of_paths(spec.data),
            "images": before and before.images,
            "versions": provenance.versions(),
        }
    )


def _start_of_paths(spec: DataSpec) -> str | None:
    """The current folder, where the data have a relative path."""
    folder = str(Path.cwd())
    relative = any(not Path(getattr(spec, key)).is_absolute() for key in paths(spec))
    # A folder of a name that TOML cannot hold is left out.
    return folder if relative and folder.isprintable() else None


def save_config(folder: Path, saved: SavedRun) -> None:
    """Write ``config.toml``."""
    values = saved.model_dump(mode="json", exclude_none=True)
    files.write(folder / "config.toml", tomli_w.dumps(values).encode())


def save_record(
    folder: Path,
    spec: RunSpec,
    starts: list[dict[str, Any]],
    held_out: ImageData,
    device: torch.device,
    train: str | None = None,
    seconds: float = 0.0,
) -> None:
    """Write ``run.json``, which names the files that are there.

    Args:
        folder: The run folder.
        spec: What is run.
        starts: Where its processes were started.
        held_out: Images that are not trained on.
        device: Where the images were rendered, if they were.
        train: Digest of the training images, once the training is done: until then the checkpoints
            have it.
        seconds: Of the training.
    """
    images = {
        "train": train,
        "held_out": held_out.digest,
        "renderer": provenance.renderer(device) if rendered(spec.data) else None,
    }
    # The metrics come last, after this record.
    names = {RECORD, METRICS} | _there(folder, own_files(folder) | RESULTS)
    record = {
        "seed": spec.fit.seed,
        "seconds": seconds,
        "starts": starts,
        "images": images,
        "files": sorted(names),
    }
    write_json(folder / RECORD, record)


def check_recorded(
    folder: Path, spec: RunSpec, images: tuple[ImageData, ImageData], device: torch.device | str
) -> None:
    """Refuse images that are not those of a run; one that does not say so is a Notice.

    So is another rounding, of sprites that were rendered elsewhere than here.

    Args:
        folder: The run folder, of which ``run.json`` is read.
        spec: What was run.
        images: (train, held-out) images, as the data of the run are now.
        device: Where they were rendered, if they were.

    Raises:
        UserError: If they are others.
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
    """(train, held-out) images of a run folder, as :func:`load_data` finds them, checked.

    Raises:
        UserError: If they are not there, or not those of the run.
    """
    images = load_data(spec, device)
    check_recorded(folder, spec, images, device)
    return images


def save_weights(folder: Path, fit: Fit) -> None:
    """Write ``weights.safetensors``: model, guide, and units of the data of their own."""
    tensors = {}
    for name in UNITS:
        if (values := getattr(fit.form, name)) is not None:
            tensors[f"form.{name}"] = torch.from_numpy(values)
    for part, module in (("model", fit.model), ("guide", fit.guide)):
        for name, tensor in module.state_dict().items():
            tensors[f"{part}.{name}"] = tensor.cpu().contiguous()
    # Not `save_file`, which makes the file readable by its owner alone whatever the umask says.
    files.write(folder / "weights.safetensors", save(tensors))


def save_run(
    folder: str | Path,
    fit: Fit,
    spec: RunSpec,
    held_out: ImageData,
) -> diagnostics.Metrics:
    """Write configuration, weights, metrics, history, posterior draws, figures and report.

    What is written is what was done: model, guide, schedule and settings of the training are those
    of the fit, whatever ``spec`` says of them. Of ``spec`` are the names, and ``data`` if it leads
    to these very images, training and held-out ones; else the run says that its images were given
    in Python, and ``ngvae evaluate`` refuses it in one line.

    ``run.json`` says where the result comes from: the seed, the seconds of the training, digests of
    the images, and for each of the starts that it took the command line, device, threads, system
    and versions.

    Args:
        folder: Where to; made if it is not there.
        fit: From :func:`ngvae_pyro.fit`.
        spec: What was run.
        held_out: Images that were not trained on.

    Returns:
        The metrics, as written to ``metrics.json``.

    Raises:
        UserError: If an argument is not what it should be, the images are of another shape than the
            model's, model or guide are of a class of one's own, which no run folder builds again,
            the folder cannot be written, another process writes it, or it holds a file of one of
            these names that is not of a run; nothing is written then.
    """
    expect("folder", folder, (str, Path), "the name of a folder")
    check_fit(fit)
    expect("spec", spec, RunSpec, "an ngvae_pyro.RunSpec, what was run")
    check_data(fit, held_out)
    folder = Path(folder)
    done = _done(fit, spec, held_out)
    with locks.held(folder), files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists() and (others := sorted(_there(folder, RESULTS))):
            raise UserError(f"{folder / others[0]}: is not of a run, and is not replaced; move it")
        check_own(folder, {*RESULTS, *ADDED})
        for name in ADDED:
            # It would be of other weights.
            (folder / name).unlink(missing_ok=True)
        return _write_run(folder, fit, done, held_out)


def _done(fit: Fit, spec: RunSpec, held_out: ImageData) -> SavedRun:
    """What was done, where a spec may say otherwise."""
    guide = fit.guide.spec
    known = MODELS[type(fit.model.spec.prior)], GUIDES[type(guide)]
    for part, declared in zip((fit.model, fit.guide), known, strict=True):
        if type(part) is not declared:
            raise UserError(
                f"save_run: expected a {declared.__name__}, which a run folder builds again, got "
                f"a {type(part).__name__}; keep its state_dict() with safetensors or torch.save"
            )
    if fit.schedule is not None:
        guide = guide.model_copy(update={"schedule": fit.schedule})
    done = spec.model_copy(
        update={
            "model_name": _name("models", spec.model_name, fit.model.spec.prior.family),
            "guide_name": _name("guides", spec.guide_name, guide.family),
            "model": fit.model.spec,
            "guide": guide,
            "fit": fit.spec,
            "data": spec.data.model_copy(update={"download": False}),
        }
    )
    images = None
    if not _leads_to(done, fit, held_out):
        values: dict[str, Any] = {"name": held_out.name}
        if fit.count is not None:
            values["size"] = fit.count + len(held_out)
            values["held_out"] = len(held_out) / values["size"]
        done = done.model_copy(update={"data": parse(DataSpec, values, "save_run: data")})
        images = "given in Python"
    saved = saved_run(done, fit.model, held_out.image_shape, fit.form)
    saved = saved.model_copy(update={"images": images})
    # What cannot be read again, such as a schedule out of range, is not written.
    readable: SavedRun = parse(
        SavedRun, saved.model_dump(mode="json", exclude_none=True), "save_run"
    )
    return readable


def _name(kind: variants.Kind, name: str, family: str) -> str:
    """The name of a variant, or the family of what was trained where the variant is of another."""
    try:
        declared = variants.spec_of(kind, name, {})
    except UserError:
        return family
    return name if (declared.prior if kind == "models" else declared).family == family else family


def _leads_to(spec: RunSpec, fit: Fit, held_out: ImageData) -> bool:
    """Whether the data that a spec names are the images of a fit."""
    if rendered(spec.data) and not held_out.name.startswith("sprites"):
        return False
    try:
        found = load_data(spec, fit.device)
    except UserError:
        return False
    return fit.digest in (None, found[0].digest) and found[1].digest == held_out.digest


def _write_run(folder: Path, fit: Fit, spec: RunSpec, held_out: ImageData) -> diagnostics.Metrics:
    """What :func:`save_run` writes, of a spec that says what was done; the metrics come last."""
    saved = saved_run(spec, fit.model, held_out.image_shape, fit.form)
    save_config(folder, saved)
    save_weights(folder, fit)
    # Once, because everything below is about these images.
    codes = diagnostics.codes(fit, held_out)
    support = Support.of(fit, held_out, codes)
    metrics = diagnostics.measured(fit, held_out, codes, seed=spec.fit.seed)
    rotation = fit.rotation.as_dict() if fit.rotation else None
    moves = [asdict(move) for move in fit.moves]
    history = {"rows": fit.history, "moves": moves, "rotation": rotation}
    write_json(folder / "history.json", history)
    attrs = {
        "model": spec.model_name,
        "guide": spec.guide_name,
        "data": spec.data.name,
        "seed": spec.fit.seed,
        **{f"version {name}": text for name, text in provenance.versions().items()},
    }
    posterior = diagnostics.to_arviz(fit, held_out, seed=spec.fit.seed, attrs=attrs)
    _arviz.to_netcdf(posterior, folder / "posterior.nc")
    plots.save_all(folder / "figures", fit, held_out, metrics, codes, support)
    record = {"starts": fit.starts, "seconds": fit.seconds}
    explorer = explore(fit, held_out, metrics, support)
    report.write_run_report(folder, saved, metrics, None, record, explorer)
    save_record(folder, spec, fit.starts, held_out, fit.device, fit.digest, fit.seconds)
    write_json(folder / METRICS, metrics)
    return metrics


# What is a run's own -------------------------------------------------------------------------


def own_files(folder: Path) -> set[str]:
    """Relative paths of the files that are a run's own, whether or not they are there.

    Its ``run.json`` names them. One of an earlier version does not; then they are those that a run
    may have: its results, its evaluation, and scores of which all three files are there.

    Raises:
        UserError: If ``run.json`` is damaged.
    """
    if not os.path.lexists(folder / RECORD):
        return set(RESULTS)
    record = load_record(folder)
    if record.get("files") is not None:
        return set(record["files"])
    own = {*RESULTS, "evaluation.json"}
    for path in folder.glob("score_*.json"):
        score = {path.name, f"{path.stem}.csv", f"figures/{path.stem}.png"}
        if score == _there(folder, score):
            own |= score
    return own


def _there(folder: Path, names: Iterable[str]) -> set[str]:
    return {name for name in names if (folder / name).is_file()}


def contents(folder: Path) -> files.Contents:
    """What a run folder holds, told apart; its record comes first and its configuration last."""
    names = own_files(folder)
    own = {path.as_posix() for path in files.with_partial(*names)}
    own |= {f"{_UNFINISHED}/{path.as_posix()}" for path in files.with_partial(*RESULTS)}
    own |= {f"{parent}/" for name in own for parent in PurePosixPath(name).parents}
    inside = f"{CHECKPOINTS}/"
    mine, foreign = files.contents(
        folder,
        lambda name: (
            name == inside
            or name in own
            or (name.startswith(inside) and is_own(name.removeprefix(inside)))
        ),
    )
    order = {folder / RECORD: 0, folder / "config.toml": 2}
    return sorted(mine, key=lambda path: order.get(path, 1)), foreign


def check_own(folder: Path, names: Iterable[str]) -> None:
    """Make sure that files may be written into a run folder.

    Raises:
        UserError: If one is there that is not of the run, or is a link or in one.
    """
    own = own_files(folder)
    for name in sorted(names):
        files.check_no_link(folder, name)
        place = folder / name
        if place.exists() and (name not in own or not place.is_file()):
            raise UserError(f"{place}: is not of the run, and is not replaced; move it")


def claim(folder: Path, names: Iterable[str]) -> None:
    """Name files in ``run.json`` as the run's own, before they are written.

    Raises:
        UserError: As :func:`check_own`, or if ``run.json`` cannot be written.
    """
    names = set(names)
    check_own(folder, {*names, RECORD})
    # A folder that has lost its record has one again when its training is finished.
    if (folder / RECORD).exists():
        own = names | _there(folder, own_files(folder))
        write_json(folder / RECORD, {**load_record(folder), "files": sorted(own)})


# Training ------------------------------------------------------------------------------------


def train(
    spec: RunSpec,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    stage: Stage = lambda text: nullcontext(),
    team: Team = ALONE,
) -> tuple[Fit, diagnostics.Metrics]:
    """Train what a spec says and write the run folder.

    The folder appears after the first step, with a checkpoint in it. From then on :func:`resume`
    goes on with it whatever happens; it is :func:`finished` when its ``metrics.json`` is there.

    Until the end no other process may write the folder.

    Args:
        spec: What to run.
        out: The run folder.
        overwrite: Whether an existing run folder is replaced, when the new one appears; one that
            holds anything else than the files of its run is not.
        progress: Show the training.
        stage: Shows what is done before and after the training.
        team: The processes that train together; the first of them writes the folder and shows.

    Returns:
        The fit and its metrics.

    Raises:
        UserError: If something that the spec asks for is not there, and nothing is written; or if
            the disk refuses to take something, and the last checkpoint is kept.
        NonFiniteLoss: If the training diverges; the folder then holds configuration and weights.
        Interrupted: If SIGINT, SIGTERM or SIGHUP came; the folder then holds a checkpoint of that
            moment.
    """
    out = Path(out)
    # Everything that can be wrong is looked at before the first step.
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
        images, held_out = _load_shared(spec, device, stage, team)
        model, guide = load_pair(spec, images)
        checkpoints = Checkpoints(out / CHECKPOINTS, spec.fit.checkpoint_every)
        if new is not None:
            saved = saved_run(spec, model, images.image_shape, images.form)
            with files.writing(out):
                save_config(new.path, saved)
            save_record(new.path, spec, [provenance.here(device, team.size)], held_out, device)
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
    data_root: str | None = None,
    download: bool = False,
    progress: bool = True,
    stage: Stage = lambda text: nullcontext(),
    team: Team = ALONE,
) -> tuple[Fit, diagnostics.Metrics]:
    """Go on with a training from the newest checkpoint of its run folder.

    On the same machine, with as many threads, the result is to the last bit that of a training
    without interruption.

    Args:
        folder: The run folder.
        device: Another name for its device, of the same kind.
        data_root: Where torchvision's data are, if not where its configuration says.
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
    with ExitStack() as stack:
        with team.together():
            # Of no run, and of a finished one, nothing is written and nothing locked.
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
            # Not only after all the steps.
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
        images, held_out = _load_shared(spec, target, stage, team)
        with team.together():
            check_recorded(folder, spec, (images, held_out), target)
        model, guide = load_pair(spec, images)
        result, failure = _fit(spec, model, guide, images, checkpoints, progress, team, resume=True)
        return _end(spec, folder, result, failure, held_out, stage, team)


def _load_shared(
    spec: RunSpec, device: torch.device, stage: Stage, team: Team
) -> tuple[ImageData, ImageData]:
    """(train, held-out) images, downloaded by one process of each machine if they are to be."""
    # The factors of images are looked at after the last step.
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
    # The others stay until the folder is whole, because torchrun ends all when one has failed.
    with team.together():
        if team.leads and failure is not None:
            with files.writing(folder):
                claim(folder, ["weights.safetensors"])
                save_weights(folder, result)
                # From these it would only diverge again.
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
    """All that :func:`save_run` writes; ``metrics.json`` comes last, which says that it is done."""
    results = folder / _UNFINISHED
    files.check_no_link(folder, _UNFINISHED)
    files.remove(results, _results)
    results.mkdir()
    try:
        metrics = _write_run(results, result, spec, held_out)
        names = {path.relative_to(results).as_posix() for path in _results(results)[0]}
        names = _there(results, names)
        check_own(folder, names)
        # The record comes first, and names what it had before as well.
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
    """What a folder of results holds, told apart."""
    own = {path.as_posix() for path in files.with_partial(*RESULTS)}
    return files.contents(folder, lambda name: name in own or name == "figures/")


# Reading -------------------------------------------------------------------------------------


def finished(folder: str | Path) -> bool:
    """Whether a folder is a run that was trained to its end and has its results."""
    return (Path(folder) / METRICS).is_file()


def unfinished(folder: str | Path) -> bool:
    """Whether a folder is a run that :func:`resume` can go on with."""
    return not finished(folder) and bool(Checkpoints(Path(folder) / CHECKPOINTS).names())


def _check_finished(folder: Path) -> None:
    if unfinished(folder):
        raise UserError(
            f"{folder}: its training is not finished; ngvae train --resume {folder} goes on with it"
        )


def _runs_in(folder: Path) -> list[str]:
    """Names of the run folders in a folder, sorted; none where it cannot be looked into."""
    try:
        return sorted(path.parent.name for path in folder.glob("*/config.toml"))
    except OSError:
        return []


def _check_run(folder: Path) -> None:
    """Raise a UserError, which names the run that may be meant, if a folder is none."""
    # Not the methods of a path, which raise for a name that is too long.
    if os.path.exists(folder / "config.toml"):
        return
    if os.path.isdir(folder):
        inside = _runs_in(folder)
        hint = f"; did you mean '{folder / inside[0]}'?" if inside else ""
        raise UserError(f"{folder}: is not a run folder (no config.toml){hint}")
    prefix = "" if folder.parent == Path() else f"{folder.parent / 'x'}"[:-1]
    hint = nearest(folder.name, _runs_in(folder.parent), prefix)
    there = "is not a folder" if os.path.exists(folder) else "no such run folder"
    raise UserError(f"{folder}: {there}{hint}")


def load_spec(folder: str | Path) -> SavedRun:
    """``config.toml`` of a run folder.

    Its ``data.download`` is not obeyed: the folder may be another's, and reading it fetches
    nothing.

    Raises:
        UserError: If the folder is not there or no run, or the file is damaged.
    """
    expect("folder", folder, (str, Path), "the name of a run folder")
    _check_run(Path(folder))
    path = Path(folder) / "config.toml"
    saved = parse(SavedRun, _read(path, tomllib.loads), str(path))
    return saved.model_copy(update={"data": saved.data.model_copy(update={"download": False})})


def load_run(folder: str | Path, device: str = "auto") -> tuple[Fit, SavedRun]:
    """The trained pair of a run folder, with its history, and what was run.

    Raises:
        UserError: If a file is missing, damaged or does not fit the others.
    """
    spec = load_spec(folder)
    folder = Path(folder)
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
        form = _form(spec, tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{weights}: cannot be loaded: {reason}") from None
    target = resolve_device(device)
    fit = Fit(model.to(target), guide.to(target), spec.fit, form=form)
    history = read_json(folder / "history.json", History)
    fit.history, fit.moves = history["rows"], [MoveRecord(**m) for m in history["moves"]]
    fit.rotation = Rotation.read(history.get("rotation"))
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
    """The form of the data of a run; those of older versions have images, channels first.

    Raises:
        RuntimeError: If its units are not there, or do not fit its images.
    """
    if spec.form is None:
        return Form()
    units = {name: tensors[f"form.{name}"] for name in UNITS if f"form.{name}" in tensors}
    vectors = spec.form.layout == "vectors"
    shape = spec.image_shape[2:] if vectors else ()
    whole = len(units) == len(UNITS) or not (units or vectors)
    if not whole or any(
        unit.shape != shape or unit.dtype != torch.float64 for unit in units.values()
    ):
        raise RuntimeError(f"form: expected loc and scale, float64 of shape {shape}")
    arrays = {name: unit.numpy() for name, unit in units.items()}
    if units and not (arrays["scale"] > 0).all():
        raise RuntimeError("form.scale: expected numbers above 0")
    return Form(spec.form.layout, spec.form.in_bytes, **arrays)


def load_metrics(folder: str | Path) -> diagnostics.Metrics:
    """``metrics.json`` of a run folder."""
    return cast(diagnostics.Metrics, read_json(Path(folder) / METRICS, Metrics))


def load_record(folder: str | Path) -> dict[str, Any]:
    """``run.json`` of a run folder: its seed, its seconds, where it was trained, its files."""
    return read_json(Path(folder) / RECORD, RunRecord)


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
