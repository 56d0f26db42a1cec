"""The command line ``ngvae``: train, inspect, count, evaluate, check, score, compare, variants."""

import copy
import errno
import io
import json
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from ngvae_pyro import __version__, files, interrupts, variants
from ngvae_pyro.errors import Notice, UserError, nearest, one_line, printable
from ngvae_pyro.extras import needed
from ngvae_pyro.latents import is_informative

with needed("cli"):
    import typer
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from typer.core import TyperCommand

if TYPE_CHECKING:
    from ngvae_pyro.distributed import Team
    from ngvae_pyro.evaluation.diagnostics import Latent, Metrics
    from ngvae_pyro.fitted import Fit
    from ngvae_pyro.records import CountCurve
    from ngvae_pyro.verdict import Verdict

# Heavy imports (torch, arviz, the specs) are inside the functions that need them, so that --help
# and variants respond at once.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train Normal-Gamma VAEs and see which latents carry information.",
)
out = Console()
err = Console(stderr=True)
# The base class of all errors in options, in typer's own click and in the click of older typers.
UsageError: Any = typer.BadParameter.__bases__[0]


def say(text: str, style: str | None = None) -> None:
    """Print a line literally: without wrapping, and without treating brackets as markup."""
    out.print(printable(text), style=style, highlight=False, soft_wrap=True, markup=False)


def complain(message: object) -> None:
    """Print one line to stderr."""
    print(f"ngvae: {one_line(message)}", file=sys.stderr)


class Command(TyperCommand):
    """A command that refuses an option given with two values, where click would use the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        collecting: Any = copy.copy(self)
        collecting.params = [copy.copy(param) for param in self.params]
        options = [p for p in collecting.params if p.param_type_name == "option"]
        once = [p for p in options if not (p.multiple or p.is_flag)]
        for param in once:
            param.multiple = True
        given = collecting.make_parser(ctx).parse_args(args=list(args))[0]
        for param in once:
            values = list(dict.fromkeys(given.get(param.name, ())))
            if len(values) > 1:
                listed = " and ".join(map(repr, values))
                raise UserError(f"{param.opts[0]}: is given as {listed}; pass one of them")
        return super().parse_args(ctx, args)


def _path(text: str) -> Path:
    """Parse a path; the empty one is refused, because it would mean the working directory."""
    if not text or "\0" in text:
        raise typer.BadParameter(f"expected a path, got {text!r}")
    return Path(text)


def _complete_model(incomplete: str) -> list[str]:
    return [name for name in variants.names("models") if name.startswith(incomplete)]


def _complete_guide(incomplete: str) -> list[str]:
    return [name for name in variants.names("guides") if name.startswith(incomplete)]


def _complete_variant(incomplete: str) -> list[str]:
    return sorted({*_complete_model(incomplete), *_complete_guide(incomplete)})


def _titled(title: str) -> Table:
    return Table(title=escape(printable(title)), title_justify="left")


# Arguments and options that several commands have.
FolderArgument = Annotated[Path, typer.Argument(parser=_path, metavar="FOLDER", help="Run folder.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="sprites (default), sprites:x,y,size, sprites:background=0.4..0.8, mnist, "
        "fashion_mnist, cifar10, a .npz, .npy, .h5, .hdf5, .h5ad, .csv, .tsv, .parquet or IDX "
        "file, or a folder of pictures."
    ),
]
LatentsOption = Annotated[int | None, typer.Option(help="Latent size K.")]
StepsOption = Annotated[int | None, typer.Option(help="Optimizer steps.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of data, weights and noise.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a key, e.g. guide.sharpness=20; may be repeated."),
]
DataRootOption = Annotated[str | None, typer.Option(help="Folder of torchvision data.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Download missing data.")]


def _team() -> "AbstractContextManager[Team | None]":
    """The processes started by torchrun, joined for a training; None without torchrun."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from ngvae_pyro import distributed

    team = distributed.started()
    return distributed.joined() if sys.argv[1:2] == ["train"] else nullcontext(team)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    notice = issubclass(category, Notice)
    text = warnings.formatwarning(message, category, filename, lineno, line)
    print(f"ngvae: {one_line(message)}" if notice else text.rstrip(), file=file or sys.stderr)


class _Terminal(io.FileIO):
    """A terminal, which may be closed while there is still output."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def _tolerant(stream: Any, errors: str) -> Any:
    """A stream that substitutes characters missing from its encoding instead of failing."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream.isatty():
        terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
        return io.TextIOWrapper(terminal, stream.encoding, errors, line_buffering=True)
    stream.reconfigure(errors=errors)
    return stream


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    warnings.showwarning = _show_warning
    sys.stdout = _tolerant(sys.stdout, "replace")
    sys.stderr = _tolerant(sys.stderr, "backslashreplace")
    try:
        _check_words(sys.argv[1:])
        with interrupts.raised() as stop, _team() as team:
            code = _run(team)
            # Typer treats every KeyboardInterrupt as a SIGINT.
            if code == 130 and stop.signum is not None:
                code = 128 + stop.signum
    except UserError as error:
        complain(error)
        code = 2
    except interrupts.Interrupted as end:
        # The signal came before the command had begun.
        code = end.exit_code
    sys.exit(code)


def _check_words(words: list[str]) -> None:
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{word}: cannot be written down as UTF-8; expected another name"
            ) from None


def _run(team: "Team | None") -> Any:
    """Run the command line and return its exit code."""
    try:
        # In standalone mode typer would show an error in a box of several lines.
        return app(obj=team, standalone_mode=False) or 0
    except (UserError, UsageError, OSError) as error:
        if team is None or team.leads:
            _explain(error)
        return 2
    except typer.Abort as end:
        complain("aborted")
        signal = end.__cause__ or end.__context__
        if isinstance(signal, interrupts.Interrupted):
            raise SystemExit(signal.exit_code) from None
        return 1
    except SystemExit as end:
        # All processes of a team reach these exits; an interrupted process leaves on its own.
        if end.code not in (0, 1, 2):
            raise
        return end.code


def _explain(error: Any) -> None:
    """Print one line for a user's mistake or a system error, such as a full disk."""
    if isinstance(error, UsageError):
        # Without arguments typer shows the help, and raises this error without a message.
        if sys.argv[1:]:
            text = error.format_message().rstrip(".")
            command = error.ctx.command_path if error.ctx else "ngvae"
            complain(f"{text[:1].lower()}{text[1:]}; see {command} --help")
    elif isinstance(error, OSError) and error.filename is not None:
        complain(f"{error.filename}: {error.strerror}")
    else:
        complain(error)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"ngvae {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.obj is not None and context.invoked_subcommand != "train":
        raise UserError(f"torchrun is for train, not for {context.invoked_subcommand}")


def assign(values: dict[str, Any], assignment: str) -> None:
    """Apply one ``--set key=value``: a dotted key, a TOML value or a bare string.

    Raises:
        UserError: If it does not have that form, if its key does not start with a part of a run,
            or if the key is already set to another value.
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
    if len(assignment) > files.TOML_BYTES:
        raise UserError(
            f"--set {key[:80]}: too long: expected at most {files.TOML_BYTES:,} characters, "
            f"got {len(assignment):,}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for part in reversed(parts):
        value = {part: value}
    _put(values, value, f"--set {assignment}")


def _put(values: dict[str, Any], changes: dict[str, Any], option: str, path: str = "") -> None:
    """Add the values of an option to those of earlier options, which it must not contradict."""
    for key, value in changes.items():
        dotted = f"{path}.{key}" if path else key
        old = values.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _put(old, value, option, dotted)
        elif old is None:
            values[key] = value
        elif old != value:
            raise UserError(
                f"{option}: {dotted} is set to {old!r} already; pass one of the two values"
            )


def _values(
    data: str | None,
    latents: int | None,
    steps: int | None,
    device: str | None,
    data_root: str | None,
    download: bool,
    settings: list[str] | None,
    seed: int | None = None,
) -> dict[str, Any]:
    """The tables of a run that are set by command-line options."""
    values: dict[str, Any] = {"fit": {}, "data": {}, "model": {}, "guide": {}}
    for table, key, value in (
        ("data", "name", data),
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
    values["data"].setdefault("name", "sprites")
    return values


@app.command(cls=Command)
def train(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model variant or path to a .toml file.",
            autocompletion=_complete_model,
        ),
    ] = None,
    guide: Annotated[
        str | None,
        typer.Argument(
            help="Guide variant or path to a .toml file.",
            autocompletion=_complete_guide,
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", parser=_path, metavar="FOLDER", help="Run folder to write."),
    ] = None,
    data: DataOption = None,
    latents: LatentsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    settings: SettingsOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing run folder.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=_path,
            metavar="FOLDER",
            help="Resume the training in this run folder; only --device, --data-root and "
            "--download may be added.",
        ),
    ] = None,
) -> None:
    """Train a model and a guide, and write a run folder with the results."""
    if resume is not None:
        given = [name for name in context.params if _is_given(context, name)]
        if others := sorted({*given} - {"resume", "device", "data_root", "download"}):
            raise UserError(
                f"--resume: takes from {resume} what to train; leave out "
                + ", ".join(name.removesuffix("_folder") for name in others)
            )
        from ngvae_pyro import runs

        if runs.finished(resume):
            say(f"{resume}: was finished already")
        run = partial(runs.resume, resume, device=device, data_root=data_root, download=download)
        _train(resume, context.obj, run)
        return
    # Checked first, because a wrong name is a more useful message than a missing option.
    named: tuple[tuple[variants.Kind, str | None], ...] = (("models", model), ("guides", guide))
    for kind, name in named:
        if name is not None:
            variants.read(kind, name)
    if model is None or guide is None or out_folder is None:
        raise UserError("train: expected a model, a guide and --out, or --resume alone")
    values = _values(data, latents, steps, device, data_root, download, settings, seed)
    spec = variants.run_spec(model, guide, values, "command line")

    from ngvae_pyro import runs

    run = partial(runs.train, spec, out_folder, overwrite=overwrite)
    fit = _train(out_folder, context.obj, run)
    found = fit.model.likelihood.family if fit else None
    if spec.model.likelihood.family == "auto" and found == "bernoulli":
        say("the images hold only 0 and 1: likelihood bernoulli")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _train(folder: Path, team: "Team | None", run: Callable[..., Any]) -> "Fit | None":
    """Train or resume, and report the outcome; returns the fit in the process that reports."""
    from ngvae_pyro import distributed, runs
    from ngvae_pyro.training.steps import NonFiniteLoss

    team = team or distributed.ALONE
    stage: Any = err.status if team.leads else nullcontext

    def ended(line: str, code: int) -> typer.Exit:
        if team.leads:
            complain(line)
        return typer.Exit(code)

    try:
        fit, metrics = run(stage=stage, team=team)
    except NonFiniteLoss as error:
        raise ended(f"{error}; its weights are in {folder}", 1) from None
    except KeyboardInterrupt as error:
        goes_on = f"; ngvae train --resume {folder} goes on" if runs.unfinished(folder) else ""
        code = error.exit_code if isinstance(error, interrupts.Interrupted) else 130
        raise ended(f"interrupted{goes_on}", code) from None
    if not team.leads:
        return None
    _summary(folder, fit, metrics)
    return fit


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _verdict(fit: "Fit", metrics: "Metrics") -> "Verdict":
    """The verdict in the metrics, or, for runs of older versions, one computed from them."""
    from ngvae_pyro.verdict import Verdict

    found = Verdict.from_metrics(metrics)
    numbers = metrics["probs"], metrics["variance_of_loc"], metrics["precision"]["mean"]
    return found or fit.judge(*numbers)


def _summary(folder: Path, fit: "Fit", metrics: "Metrics") -> None:
    verdict = _verdict(fit, metrics)
    say(f"{verdict.count}: {verdict.word}", style="bold")
    for line in verdict.lines("--set"):
        say(f"  {line}")
    if fit.moves:
        kept = [f"{move} (+{move.gain:.1f} nats)" for move in fit.moves if move.accepted]
        names = f": {', '.join(kept)}" if kept else ""
        say(f"{len(kept)} of {len(fit.moves)} moves kept{names}")
    if fit.rotation is not None:
        say(str(fit.rotation))
    kl = ", ".join(f"{name} {kl['total']:.2f}" for name, kl in metrics["kl"].items())
    extra = metrics["extra_steps"]
    say(
        f"held-out ELBO {metrics['elbo']:.1f} nats per image (KL: {kl}), "
        f"reconstruction MSE {metrics['reconstruction_mse']:.2e} per pixel"
    )
    say(
        f"{metrics['steps']} steps{f' (+{extra} in moves)' if extra else ''} in "
        f"{fit.seconds:.0f} s on {fit.device}; written to {folder}"
    )


@app.command(cls=Command)
def inspect(
    folder: FolderArgument,
) -> None:
    """Show the latents of a run, most informative first, and where its figures are."""
    from ngvae_pyro import runs
    from ngvae_pyro.evaluation import diagnostics
    from ngvae_pyro.report.table import DASH

    fit, spec = runs.load_run(folder, device="cpu")
    metrics = runs.load_metrics(folder)
    findings = _verdict(fit, metrics).findings
    marks = {k: finding.kind for finding in findings for k in finding.latents}
    title = f"{spec.model_name} + {spec.guide_name} on {spec.data.name}, seed {spec.fit.seed}"
    table = _titled(title)
    # Without lines between the columns, because ten columns have to fit into 80 characters.
    table.box, table.pad_edge, table.collapse_padding = box.SIMPLE_HEAD, False, True
    for name in ("latent", "", "p", "precision", "5 %-95 %", "var loc", "KL z", "paid", "earned"):
        left = name in ("latent", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    rows = diagnostics.most_informative_first(metrics)
    for row in rows:
        precision = row["precision"]
        table.add_row(
            f"z{row['latent']}",
            marks.get(row["latent"], ""),
            f"{row['probs']:.3f}",
            _short(precision["mean"]),
            f"{_short(precision['5%'])}-{_short(precision['95%'])}",
            f"{row['variance_of_loc']:.4f}",
            f"{row['kl']['z']:z.2f}",
            f"{row['paid']:z.2f}",
            f"{row['earned']:z.2f}" if "earned" in row else DASH,
            style="bold" if is_informative(row["probs"]) else "dim",
        )
    out.print(table)
    say(
        "earned: nats the latent is worth to the reconstruction; paid: its KL; a latent is worth "
        "counting if it earns more than it pays",
        style="dim",
    )
    say(f"informative (bold): p above one half; p is {fit.guide.p_is}", style="dim")
    if not getattr(spec.model.prior, "joint", True):
        say(
            "precision: how narrow the guide's q(z | x) is, which the data decide; it is not the "
            "posterior of the model's own precision, of which the data say nothing",
            style="dim",
        )
    remarks = diagnostics.remarks(rows, marks)
    if remarks:
        out.print(_remarks_table(remarks, rows))
    if "follows" in remarks:
        say(
            "follows: the known factor that the latent's mean correlates with, and the absolute "
            "correlation, of held-out images",
            style="dim",
        )
    if "agreement" in remarks:
        say(
            "negentropy: how far the latent's mean is from a Gaussian over the training images, "
            "nats; agreement: its correlation with the independent axis that other samples of the "
            "images have in its place, 1 where the axis is certain",
            style="dim",
        )
    _summary(folder, fit, metrics)
    for path in sorted((folder / "figures").glob("*.png")):
        say(f"  {path}")


def _remarks_table(remarks: Mapping[str, Mapping[int, str]], rows: "Sequence[Latent]") -> Table:
    # A separate table, because the table of numbers already takes 80 characters.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("latent", no_wrap=True)
    for heading in remarks:
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = [column.get(row["latent"], "") for column in remarks.values()]
        if any(cells):
            style = "bold" if is_informative(row["probs"]) else None
            table.add_row(f"z{row['latent']}", *(escape(printable(x)) for x in cells), style=style)
    return table


@app.command(cls=Command)
def count(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="What to count the latents of; as --data of train."),
    ],
    out_folder: Annotated[
        Path,
        typer.Option("--out", parser=_path, metavar="FOLDER", help="Folder of the runs."),
    ],
    model: Annotated[
        str, typer.Option(help="As for train.", autocompletion=_complete_model)
    ] = "normal_gamma",
    guide: Annotated[
        str, typer.Option(help="As for train.", autocompletion=_complete_guide)
    ] = "relaxed",
    factors: Annotated[
        str, typer.Option(help="The other scales, in units of the data's own.")
    ] = "1/4,1/2,2,4",
    latents: LatentsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    settings: SettingsOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
) -> None:
    """Count the latents at several scales, and find the scales that agree.

    A run at the data's own scale comes first, then those at --factors of it. Finished runs are not
    repeated, so the same command resumes an interrupted curve, and one with more factors adds to
    it.
    """
    numbers = [_factor(word) for word in factors.split(",")]
    values = _values(data, latents, steps, device, data_root, download, settings, seed)
    spec = variants.run_spec(model, guide, values, "command line")

    from ngvae_pyro.runs import counting
    from ngvae_pyro.training.steps import NonFiniteLoss

    try:
        curve = counting.curve_of(spec, out_folder, numbers, stage=err.status, say=say)
    except NonFiniteLoss as error:
        complain(f"at the own scale: {error}; its weights are in {out_folder / 'own'}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        complain("interrupted; the same command goes on from here")
        code = error.exit_code if isinstance(error, interrupts.Interrupted) else 130
        raise typer.Exit(code) from None
    out.print(_count_table(curve))
    say(
        "bold: the plateau; scale: standard deviation of the likelihood, "
        f"{curve['units']}; leak: largest variance of the mean of a latent that is not counted",
        style="dim",
    )
    say(counting.sentence(curve), style="bold")
    say(counting.classical(curve))
    for name in counting.WRITTEN:
        say(f"  {out_folder / name}")
    if lost := [one["folder"] for one in curve["scales"] if one["informative"] is None]:
        complain(f"the training diverged in {', '.join(f'{out_folder / str(x)}' for x in lost)}")
        raise typer.Exit(1)


def _factor(word: str) -> float:
    """A number like 0.5, or a fraction like 1/2."""
    above, slash, below = word.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"--factors: expected numbers or fractions with commas between, e.g. 1/2,2, got {word}"
        ) from None


def _count_table(curve: "CountCurve") -> Table:
    from ngvae_pyro.report.table import DASH

    table = _titled(curve["data"])
    table.box, table.pad_edge, table.collapse_padding = box.SIMPLE_HEAD, False, True
    for name in ("scale", "", "latents", "verdict", "leak", "MSE", "ELBO"):
        left = name in ("", "verdict")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "verdict")
    found = curve["plateau"]
    for i, one in enumerate(curve["scales"]):
        leak, mse, elbo = one["leak"], one["mse"], one["elbo"]
        table.add_row(
            f"{curve['unit'] * one['scale']:.3g}",
            "own" if i == curve["own"] else "",
            DASH if one["informative"] is None else str(one["informative"]),
            escape(printable(one["verdict"] or "diverged")),
            DASH if leak is None else f"{leak:.4f}",
            DASH if mse is None else f"{mse:.2e}",
            DASH if elbo is None else f"{elbo:.1f}",
            style="bold" if found["first"] <= i <= found["last"] else None,
        )
    return table


@app.command(cls=Command)
def evaluate(
    folder: FolderArgument,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Add disentanglement metrics and the held-out log likelihood to a trained run."""
    from ngvae_pyro import evaluation
    from ngvae_pyro.report.table import DASH, footnotes, of_run

    with err.status("evaluating"):
        result = evaluation.evaluate_run(folder, device)
    table = _titled(f"{folder}, {result['source']}")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it means")
    rows = of_run({"evaluation": result})
    for metric, value in rows:
        shown = DASH if value is None else metric.show(value)
        table.add_row(metric.heading, shown, metric.text)
    out.print(table)
    for line in footnotes((metric.title, metric.needs) for metric, value in rows if value is None):
        say(line, style="dim")
    say(f"written to {folder / 'evaluation.json'} and {folder / 'report.html'}")


@app.command(cls=Command)
def check(
    folder: FolderArgument,
    images: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Held-out images; 8 by default.")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=50, max=10**6, help="Warmup steps of NUTS; 300 by default.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=50, max=10**6, help="Draws per image; 500 by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Compare the guide's posterior with draws of NUTS for some images; takes minutes."""
    from ngvae_pyro.evaluation import checking
    from ngvae_pyro.runs.checking import check_run

    given = {"images": images, "warmup": warmup, "draws": draws}
    settings = {name: value for name, value in given.items() if value is not None}
    result = check_run(folder, device, stage=err.status, **settings)
    table = _titled(f"{folder}: the guide against NUTS, {result['images']} held-out images")
    table.box, table.pad_edge, table.collapse_padding = box.SIMPLE_HEAD, False, True
    table.add_column("latent", no_wrap=True)
    for name in ("p", "50 % holds", "80 % holds", "sd ratio", "mean field", "shift", "ESS"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["latents"]:
        table.add_row(
            f"z{row['latent']}",
            f"{row['probs']:.3f}",
            *(f"{row['coverage'][name]:.2f}" for name in ("50%", "80%")),
            f"{row['sd_ratio']:.2f}",
            f"{row['mean_field']:.2f}",
            f"{row['shift']:.2f}",
            f"{row['ess']:.0f}",
            style="bold" if is_informative(row["probs"]) else "dim",
        )
    out.print(table)
    say(
        "holds: share of NUTS's draws in the guide's central interval, 0.50 and 0.80 if it is "
        "exact; sd ratio: NUTS / guide; mean field: the part of it that no guide of independent "
        "latents could avoid; shift: of the mean, in the guide's sd; ESS: of the worst image",
        style="dim",
    )
    say(checking.mean_field(result))
    say(
        f"NUTS: {result['draws']} draws after {result['warmup']}, {result['divergences']} "
        f"divergences, {result['seconds']:.0f} s"
    )
    for name in checking.WRITTEN:
        say(f"  {folder / name}")


@app.command(cls=Command)
def score(
    folder: FolderArgument,
    data: Annotated[
        str | None,
        typer.Option(help="Other images, named as for train, to compare with the held-out ones."),
    ] = None,
    size: Annotated[int, typer.Option(min=2, max=10**9, help="Most images in each set.")] = 1000,
    fit_images: Annotated[
        bool,
        typer.Option(
            "--fit-images", help="Pad or resize other images; repeat or average their channels."
        ),
    ] = False,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=_path,
            metavar="FILE",
            help="A .json file; a .csv and a .png are written beside it.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of --data, e.g. data.seed=3; may be repeated."),
    ] = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
) -> None:
    """Score how foreign images are to a run: held-out ones and, with an AUROC, those of --data."""
    other = None
    if data is not None:
        values = _values(data, None, None, None, data_root, download, settings)
        if parts := [part for part in ("model", "guide", "fit") if values[part]]:
            raise UserError(f"--set {parts[0]}: only the keys of data can be changed here")
        other = values["data"]
    elif settings or fit_images or data_root or download:
        raise UserError("--set, --fit-images, --data-root and --download need --data")

    from ngvae_pyro.runs import scoring

    with err.status("scoring"):
        result = scoring.score_run(
            folder, other, size=size, fit_images=fit_images, out=out_file, device=device
        )
    if result["fitted"]:
        say(f"{result['other']}: {result['fitted']}")
    names = {"held out": f"held out of {result['run']}", "other": result["other"]}
    for key, count in result["images"].items():
        say(f"{key}: {count:,} images {names[key]}", style="bold")
    table = Table()
    table.add_column("score", no_wrap=True)
    for name in (*result["images"], *(["AUROC"] if result["other"] else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit")
    for row in result["scores"].values():
        cells = [f"{row[name]['50%']:.4g}" for name in result["images"]]
        if result["other"]:
            cells.append(f"{row['auroc']:.3f}")
        table.add_row(row["title"], *cells, row["unit"])
    out.print(table)
    say("medians; a higher score is more foreign", style="dim")
    for path in result["files"]:
        say(f"  {path}")


@app.command(cls=Command)
def compare(
    out_folder: Annotated[
        Path,
        typer.Option("--out", parser=_path, metavar="FOLDER", help="Folder of the comparison."),
    ],
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="model+guide; separate several by commas or repeat the option. Default: the table "
            "of Jouffroy et al. (2022): vanilla VAE, two beta-VAEs and NG-VAE."
        ),
    ] = None,
    data: DataOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Number of seeds.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "--processes",
            min=1,
            max=256,
            help="Runs at once; default: one per core, or one on a GPU.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Do the runs on this Ray cluster, which sees the same folder; local: one started "
            "here. Needs the extra ray.",
        ),
    ] = None,
    latents: LatentsOption = None,
    steps: StepsOption = None,
    device: DeviceOption = None,
    settings: SettingsOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
) -> None:
    """Train and evaluate several pairs over several seeds, and compare them side by side.

    Finished runs are not repeated, so the same command resumes an interrupted comparison.
    A command with more pairs or seeds adds to it.
    """
    from ngvae_pyro import provenance
    from ngvae_pyro.report.table import groups, notes
    from ngvae_pyro.runs import comparison

    values = _values(data, latents, steps, device, data_root, download, settings)
    named = [name for word in pairs or [] for name in word.split(",")]
    runs = comparison.plan(
        out_folder, named or comparison.SLIDES, range(first_seed, first_seed + seeds), values
    )
    command = provenance.command_line()
    try:
        result = comparison.compare(out_folder, runs, jobs=jobs, ray=ray, command=command, say=say)
    except KeyboardInterrupt as error:
        complain("interrupted; the same command goes on from here")
        code = error.exit_code if isinstance(error, interrupts.Interrupted) else 130
        raise typer.Exit(code) from None
    for group in groups(result):
        out.print(_comparison_table(result, group))
        for line in notes(result, group):
            say(line, style="dim")
    say("bold: best. Mean ± standard deviation over seeds.", style="dim")
    for name in ("table.md", "table.csv", "comparison.json", "figures/page.png", "report.html"):
        say(f"  {out_folder / name}")
    for line in result["failed"]:
        complain(line)
    if result["failed"]:
        raise typer.Exit(1)


def _comparison_table(result: dict[str, Any], group: str) -> Table:
    # Narrow, because the columns of the models take all the available width.
    table = Table(
        title=escape(group),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    for model in result["models"]:
        table.add_column(escape(printable(model["label"])), justify="right")
    for metric in result["metrics"]:
        if metric["group"] == group:
            cells = [result["values"][metric["key"]][m["pair"]] for m in result["models"]]
            shown = [f"[bold]{c['shown']}[/]" if c["best"] else c["shown"] for c in cells]
            table.add_row(metric["heading"], *shown)
    return table


@app.command("variants", cls=Command)
def list_variants(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A variant, a .toml file, or a folder of such files, to show.",
            autocompletion=_complete_variant,
        ),
    ] = None,
) -> None:
    """List the declared models and guides, or check one and show all its keys."""
    if name is None:
        for kind in variants.KINDS:
            title = f"{kind} ({variants.folder(kind)})"
            rows = [(each, variants.describe(kind, each)) for each in variants.names(kind)]
            _variants_table(title, rows)
    elif os.path.isdir(name):
        paths = sorted(_path(name).glob("*.toml"))
        if not paths:
            raise UserError(f"{name}: holds no .toml file")
        _variants_table(
            name, [(path.name, variants.first_sentence(files.read_text(path))) for path in paths]
        )
    else:
        for kind in variants.kinds_of(name):
            spec = variants.spec_of(kind, name, {})
            table = _titled(f"{kind.removesuffix('s')} {name}")
            for title in ("key", "value", "default"):
                table.add_column(title, overflow="fold")
            for key, value, default in variants.keys_of(spec):
                changed = value != default
                table.add_row(
                    escape(key),
                    escape(_toml(value)),
                    escape(_toml(default)) if changed else "",
                    style="bold" if changed else None,
                )
            out.print(table)


def _variants_table(title: str, rows: list[tuple[str, str]]) -> None:
    table = _titled(title)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, text in rows:
        table.add_row(escape(printable(name)), escape(printable(text)))
    out.print(table)


def _toml(value: Any) -> str:
    """Format a value as in a variant file; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, (bool, str)) else f"{value:g}"
