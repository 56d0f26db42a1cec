"""The command line ``ngvae``: train, inspect, variants."""

import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngvae_pyro import __version__, variants
from ngvae_pyro.errors import UserError, nearest
from ngvae_pyro.specs import RunSpec, parse

if TYPE_CHECKING:
    from ngvae_pyro.svi import Fit

# Heavy imports (torch, arviz) stand inside the commands, so that --help and variants answer at
# once.
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train Normal-Gamma VAEs, and see which latents carry information.",
)
out = Console()
err = Console(stderr=True)
# As it is: a line in a log file stays a line, and brackets in a path are no markup.
say = partial(out.print, highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"ngvae: {error}", file=sys.stderr)
        sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"ngvae {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def assign(values: dict[str, Any], assignment: str) -> None:
    """Apply one ``--set key=value``: a dotted key, a TOML value or a bare string.

    Raises:
        UserError: If it is not of that form, or its key starts in no part of a run.
    """
    key, equals, text = assignment.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts) or len(parts) < 2:
        raise UserError(f"--set {assignment}: expected part.key=value, e.g. guide.sharpness=20")
    known = ["model", "guide", "fit", "data"]
    if parts[0] not in known:
        hint = nearest(parts[0], known)
        raise UserError(
            f"--set {assignment}: unknown part '{parts[0]}'{hint} (known: {', '.join(known)})"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {assignment}: '{part}' is set to a value already")
    table[parts[-1]] = value


def run_spec(model: str, guide: str, changes: dict[str, Any], source: str) -> RunSpec:
    """The spec of a run: two variants with the command line's changes on top."""
    parts = {}
    named: tuple[tuple[variants.Kind, str], ...] = (("models", model), ("guides", guide))
    for kind, name in named:
        part = kind.removesuffix("s")
        spec = variants.spec_of(kind, name, changes.pop(part, {}))
        parts[part] = spec.model_dump(exclude_unset=True)
    values = {"model_name": model, "guide_name": guide, **parts, **changes}
    return parse(RunSpec, values, source)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="Model variant, or path to a .toml file.")],
    guide: Annotated[str, typer.Argument(help="Guide variant, or path to a .toml file.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    data: Annotated[
        str,
        typer.Option(
            help="sprites, sprites:x,y,size, mnist, fashion_mnist, cifar10, a .npz or IDX file."
        ),
    ] = "sprites",
    latents: Annotated[int | None, typer.Option(help="Latent size K.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data, weights and noise.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key, e.g. guide.sharpness=20; may be repeated."),
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of torchvision data.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download missing data.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing run folder.")
    ] = False,
) -> None:
    """Train a model and a guide, and write a run folder with the evidence."""
    values: dict[str, Any] = {"fit": {}, "data": {"name": data}, "model": {}, "guide": {}}
    for table, key, value in (
        ("model", "latent_size", latents),
        ("fit", "steps", steps),
        ("fit", "seed", seed),
        ("fit", "device", device),
        ("data", "root", data_root),
        ("data", "download", download or None),
    ):
        if value is not None:
            values[table][key] = value
    for assignment in settings or []:
        assign(values, assignment)
    spec = run_spec(model, guide, values, "command line")

    from ngvae_pyro import runs, svi

    # Everything that can be wrong is looked at before the first step.
    svi.resolve_device(spec.fit.device)
    with runs.new_folder(out_folder, overwrite) as folder:
        with err.status("preparing data"):
            images, held_out = runs.load_data(spec)
        network, posterior = runs.load_pair(spec, images)
        if spec.model.likelihood.family == "auto" and network.likelihood.family == "bernoulli":
            said = f"{images.name} holds only 0 and 1: likelihood bernoulli"
            err.print(said, highlight=False, markup=False)
        try:
            fit = svi.fit(network, posterior, images, spec.fit)
        except svi.NonFiniteLoss as error:
            fit = svi.Fit(network, posterior, spec.fit)
            runs.save_weights(folder, fit, spec, images.image_shape)
            print(f"ngvae: {error}; its weights are in {out_folder}", file=sys.stderr)
            failed = True
        else:
            failed = False
            with err.status("writing the report"):
                metrics = runs.save_run(folder, fit, spec, held_out)
    if failed:
        raise typer.Exit(1)
    _summary(out_folder, fit, metrics)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _summary(folder: Path, fit: "Fit", metrics: dict[str, Any]) -> None:
    count = f"{metrics['informative']} of {fit.model.latent_size} latents are informative"
    say(count, style="bold")
    if fit.moves:
        kept = [f"{move.kind} of z{move.latent}" for move in fit.moves if move.accepted]
        names = f": {', '.join(kept)}" if kept else ""
        say(f"{len(kept)} of {len(fit.moves)} moves kept{names}")
    kl = ", ".join(f"{name} {kl['total']:.2f}" for name, kl in metrics["kl"].items())
    extra = metrics["extra_steps"]
    say(
        f"held-out ELBO {metrics['elbo']:.1f} nats per image (KL: {kl}), "
        f"reconstruction MSE {metrics['reconstruction_mse']:.2e} per pixel"
    )
    say(
        f"{metrics['steps']} steps{f' (+{extra} in moves)' if extra else ''} in "
        f"{metrics['seconds']:.0f} s on {fit.device}; written to {folder}"
    )


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
) -> None:
    """Show the latents of a run, most informative first, and where its figures are."""
    from ngvae_pyro import diagnostics, runs

    fit, spec = runs.load_run(folder, device="cpu")
    metrics = runs.load_metrics(folder)
    title = f"{spec.model_name} + {spec.guide_name} on {spec.data.name}, seed {spec.fit.seed}"
    table = Table(title=escape(title), title_justify="left")
    for name in ("latent", "p", "precision", "5 %", "95 %", "var loc"):
        table.add_column(name, justify="left" if name == "latent" else "right", no_wrap=True)
    for site in metrics["kl"]:
        table.add_column(f"KL {site[:9]}", justify="right", no_wrap=True)
    for row in diagnostics.most_informative_first(metrics):
        precision = row["precision"]
        table.add_row(
            f"z{row['latent']}",
            f"{row['probs']:.3f}",
            *(_short(precision[key]) for key in ("mean", "5%", "95%")),
            f"{row['variance_of_loc']:.4f}",
            *(f"{row['kl'][site]:.2f}" for site in metrics["kl"]),
            style="bold" if row["probs"] > 0.5 else "dim",
        )
    out.print(table)
    _summary(folder, fit, metrics)
    for path in sorted((folder / "figures").glob("*.png")):
        say(f"  {path}")


@app.command("variants")
def list_variants() -> None:
    """List the declared models and guides."""
    for kind in variants.SPECS:
        table = Table(title=escape(f"{kind} ({variants.folder(kind)})"), title_justify="left")
        table.add_column("name", no_wrap=True)
        table.add_column("what it is")
        for name in variants.names(kind):
            table.add_row(name, escape(variants.describe(kind, name)))
        out.print(table)
