"""Writing a fit into a run folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ngvae_pyro import _arviz, files, locks, provenance, variants
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.evaluation.traversals import Support
from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import Fit, check_data, check_fit
from ngvae_pyro.guide import GUIDES
from ngvae_pyro.model import MODELS, VAE
from ngvae_pyro.own import check_kept
from ngvae_pyro.report import pages as report
from ngvae_pyro.report import plots
from ngvae_pyro.report.explorer import explore
from ngvae_pyro.specs import CovariateSpec, DataSpec, FormSpec, OwnSpec, RunSpec, SavedRun, parse

with needed("cli"):
    import tomli_w
with needed("train"):
    from safetensors.torch import save
from ngvae_pyro.data.declared import load_data, paths, rendered
from ngvae_pyro.runs.folder import (
    ADDED,
    METRICS,
    RECORD,
    RESULTS,
    UNITS,
    _there,
    check_own,
    own_files,
    write_json,
)

# Images that are drawn for a run folder take no more numbers than this, 4 MB each of posterior and
# prior.
DRAWN_NUMBERS = 2**20


def saved_run(spec: RunSpec, model: VAE, image_shape: tuple[int, ...], form: Form) -> SavedRun:
    """The content of ``config.toml``: enough to rebuild the pair of a run."""
    before = spec if isinstance(spec, SavedRun) else None
    return SavedRun(
        **{
            **{name: getattr(spec, name) for name in RunSpec.model_fields},
            # The model's own spec, in which `auto` is resolved, is the one that is trained.
            "model": model.spec,
            "image_shape": image_shape,
            "form": FormSpec(
                layout=form.layout,
                in_bytes=form.in_bytes,
                columns=form.columns or None,
                covariates=tuple(CovariateSpec(**asdict(one)) for one in form.covariates) or None,
                missing=form.missing or None,
                depth=form.depth or None,
            ),
            "folder": (before and before.folder) or _start_of_paths(spec.data),
            "images": before and before.images,
            "versions": provenance.versions(),
        }
    )


def _start_of_paths(spec: DataSpec) -> str | None:
    """The working directory, if the data have a relative path."""
    folder = str(Path.cwd())
    relative = any(not Path(getattr(spec, key)).is_absolute() for key in paths(spec))
    # A folder whose name cannot be written in TOML is left out.
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
    """Write ``run.json``, which lists the run's files.

    Args:
        folder: The run folder.
        spec: The run's spec.
        starts: How and where its processes were started.
        held_out: Images that are not trained on.
        device: The device that rendered the images, if they were rendered.
        train: Digest of the training images, known once the training is done; until then it is in
            the checkpoints.
        seconds: Duration of the training.
    """
    images = {
        "train": train,
        "held_out": held_out.digest,
        "renderer": provenance.renderer(device) if rendered(spec.data) else None,
    }
    # The metrics are written last, after this record.
    names = {RECORD, METRICS} | _there(folder, own_files(folder) | RESULTS)
    record = {
        "seed": spec.fit.seed,
        "seconds": seconds,
        "starts": starts,
        "images": images,
        "files": sorted(names),
    }
    write_json(folder / RECORD, record)


def save_weights(folder: Path, fit: Fit) -> None:
    """Write ``weights.safetensors``: model, guide, and the data's own units if they have any."""
    tensors = {}
    for name in UNITS:
        if (values := getattr(fit.form, name)) is not None:
            tensors[f"form.{name}"] = torch.from_numpy(values)
    for part, module in (("model", fit.model), ("guide", fit.guide)):
        for name, tensor in module.state_dict().items():
            # A copy, because two names may have one tensor, which the format does not know.
            tensors[f"{part}.{name}"] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    # Not `save_file`, which makes the file readable only by its owner, whatever the umask is.
    files.write(folder / "weights.safetensors", save(tensors))


def save_run(
    folder: str | Path,
    fit: Fit,
    spec: RunSpec,
    held_out: ImageData,
) -> diagnostics.Metrics:
    """Write configuration, weights, metrics, history, posterior draws, figures and report.

    The files record what was done: model, guide, schedule and settings of the training are those
    of the fit, whatever ``spec`` says. Only the names are taken from ``spec``, and ``data`` if it
    leads to exactly these training and held-out images; otherwise the run records that its images
    were given in Python, and ``ngvae evaluate`` refuses it in one line.

    ``run.json`` records where the result comes from: the seed, the duration of the training,
    digests of the images, and for each start the command line, device, threads, system and
    versions.

    Args:
        folder: The folder, which is made if necessary.
        fit: From :func:`ngvae_pyro.fit`.
        spec: The run's spec.
        held_out: Images that were not trained on.

    Returns:
        The metrics, as written to ``metrics.json``.

    Raises:
        UserError: If an argument is invalid, the images do not have the model's shape, the model or
            guide is of a custom class, which could not be rebuilt from a run folder, the folder
            cannot be written, another process is writing it, or a file of one of these names is
            not of a run. Nothing is written then.
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
            # It would belong to other weights.
            (folder / name).unlink(missing_ok=True)
        return _write_run(folder, fit, done, held_out)


def _done(fit: Fit, spec: RunSpec, held_out: ImageData) -> SavedRun:
    """The spec of what was done, which may differ from the given one."""
    guide = fit.guide.spec
    known = MODELS.get(type(fit.model.spec.prior)), GUIDES.get(type(guide))
    for part, declared in zip((fit.model, fit.guide), known, strict=True):
        check_kept(part)
        if declared is not None and type(part) is not declared:
            raise UserError(
                f"save_run: expected a {declared.__name__}, which a run folder builds again, got "
                f"a {type(part).__name__}; keep its state_dict() with safetensors or torch.save"
            )
    networks = {"decoder": fit.model.spec.decoder, "encoder": getattr(guide, "encoder", None)}
    factories = {key: n.factory for key, n in networks.items() if isinstance(n, OwnSpec)}
    if fit.model.spec.likelihood.family == "own":
        factories["likelihood"] = fit.model.spec.likelihood.factory
    for key, factory in factories.items():
        if not isinstance(factory, str):
            raise UserError(
                f"save_run: {key}: expected a class of torch.nn.Module, of a module that can be "
                f"imported, got {factory.__qualname__} of {factory.__module__}; "
                "keep its state_dict() with safetensors or torch.save"
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
    # A spec that could not be read back, such as a schedule out of range, is not written.
    readable: SavedRun = parse(
        SavedRun, saved.model_dump(mode="json", exclude_none=True), "save_run"
    )
    return readable


def _name(kind: variants.Kind, name: str, family: str) -> str:
    """The name of a variant, or the trained family if the variant is of another family."""
    try:
        declared = variants.spec_of(kind, name, {})
    except UserError:
        return family
    return name if (declared.prior if kind == "models" else declared).family == family else family


def _leads_to(spec: RunSpec, fit: Fit, held_out: ImageData) -> bool:
    """Whether the data named in a spec are the images of a fit."""
    if rendered(spec.data) and not held_out.name.startswith("sprites"):
        return False
    try:
        found = load_data(spec, fit.device)
    except UserError:
        return False
    return fit.digest in (None, found[0].digest) and found[1].digest == held_out.digest


def _write_run(folder: Path, fit: Fit, spec: RunSpec, held_out: ImageData) -> diagnostics.Metrics:
    """Write what :func:`save_run` writes, for a spec of what was done; the metrics come last."""
    saved = saved_run(spec, fit.model, held_out.image_shape, fit.form)
    save_config(folder, saved)
    save_weights(folder, fit)
    # Computed once, because everything below uses these images.
    codes = diagnostics.codes(fit, held_out)
    support = Support.of(fit, held_out, codes)
    metrics = diagnostics.measured(fit, held_out, codes, seed=spec.fit.seed)
    rotation = fit.rotation.as_dict() if fit.rotation else None
    moves = [asdict(move) for move in fit.moves]
    history = {"rows": fit.history, "moves": moves, "rotation": rotation, "skipped": fit.skipped}
    write_json(folder / "history.json", history)
    attrs = {
        "model": spec.model_name,
        "guide": spec.guide_name,
        "data": spec.data.name,
        "seed": spec.fit.seed,
        **{f"version {name}": text for name, text in provenance.versions().items()},
    }
    kept = min(diagnostics.OBSERVATIONS, len(held_out)) * held_out.images[0].numel()
    predictive = min(diagnostics.DRAWS, DRAWN_NUMBERS // kept)
    posterior = diagnostics.to_arviz(
        fit, held_out, seed=spec.fit.seed, attrs=attrs, predictive=predictive
    )
    _arviz.to_netcdf(posterior, folder / "posterior.nc")
    plots.save_all(folder / "figures", fit, held_out, metrics, codes, support)
    record = {"starts": fit.starts, "seconds": fit.seconds}
    explorer = explore(fit, held_out, metrics, support)
    report.write_run_report(folder, saved, metrics, None, record, explorer)
    save_record(folder, spec, fit.starts, held_out, fit.device, fit.digest, fit.seconds)
    write_json(folder / METRICS, metrics)
    return metrics
