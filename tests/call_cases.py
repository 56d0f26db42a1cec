"""Calls in Python with right and wrong arguments, and arrays of all kinds as images.

A case is a function and its arguments as source text, so that what fails can be typed in again. A
call has to succeed, or to raise a :class:`UserError` of one printable line with nothing written, or
the TypeError with which Python itself refuses arguments that are not in the signature.

Images in memory are read as those in a file are: what is accepted holds the numbers that the same
array gives in an ``.npz``.
"""

import copy
import inspect
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from input_cases import Bench, Result, Slow, impatient, lightened, npz, snapshot
from matplotlib.figure import Figure

import ngvae_pyro as ng
from ngvae_pyro import runs
from ngvae_pyro.data import sources as loading
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions import normal_gamma as distributions
from ngvae_pyro.errors import LONGEST, Notice, UserError
from ngvae_pyro.evaluation import evidence
from ngvae_pyro.report import plots
from ngvae_pyro.training.steps import NonFiniteLoss

# The names are imported on first use, which must not be while a part is taken out.
for _name in ng.__all__:
    getattr(ng, _name)
SMALL = "{'width': 4, 'depth': 1}"
AXES = "Figure().add_subplot()"
SPEC = "ng.FitSpec(steps=2, batch_size=8, device='cpu')"
COUNTED = f"ng.ModelSpec(decoder={SMALL})"
# Each function with good arguments; those by keyword come up, or are left out.
CALLS: dict[str, tuple[list[str], dict[str, str]]] = {
    "ng.load_data": (["'images.npz'"], {"seed": "0", "n": "10", "root": "'x'", "device": "'cpu'"}),
    "ng.stream": (["images"], {"name": "'a'", "layout": "None", "folder": "'.'"}),
    "ng.sprites": (
        ["20"],
        {"seed": "1", "resolution": "32", "vary": "('x', 'y')", "edge": "3.0", "device": "'cpu'"}
        | {"hold": "{'size': 0.2}", "ranges": "{'x': (0.4, 0.6)}"},
    ),
    "ng.ImageData": (["'a'", "images"], {"factors": "factors", "factor_names": "('a', 'b')"}),
    "ng.load_model": (["'gaussian'", "data"], {"latent_size": "2", "decoder": SMALL}),
    "ng.load_guide": (["'gaussian'", "model"], {"encoder": SMALL}),
    "ng.FitSpec": ([], {"steps": "2", "batch_size": "8", "learning_rate": "1e-3", "seed": "0"}),
    "ng.ModelSpec": ([], {"latent_size": "2", "decoder": SMALL}),
    "ng.RunSpec": ([], {"model": "ng.ModelSpec()", "fit": SPEC}),
    "ng.Checkpoints": (["'checkpoints'"], {"every": "5", "appear": "None"}),
    "ng.fit": (["model", "guide", "data"], {"spec": SPEC, "progress": "False"}),
    "ng.count": (
        ["data"],
        {"out": "'counts'", "factors": "[0.5, 2.0]", "model": COUNTED, "guide": "'relaxed'"}
        | {"latent_size": "2", "steps": "2", "seed": "0", "held_out": "0.2", "device": "'cpu'"},
    ),
    "ng.evaluate": (["fit", "data"], {"seed": "0"}),
    "ng.to_arviz": (
        ["fit", "data"],
        {"observations": "3", "chains": "2", "draws_per_chain": "5", "predictive": "4"}
        | {"seed": "0", "attrs": "{}"},
    ),
    "ng.log_likelihood": (["fit", "data"], {"draws": "25", "widen": "1.2", "seed": "0"}),
    "ng.load_run": (["run"], {"device": "'cpu'"}),
    "ng.save_run": (["folder", "fit", "spec", "data"], {}),
    "ng.scores.reference": (["fit", "data"], {}),
    "ng.scores.scores": (["fit", "data", "known"], {"seed": "0"}),
    "ng.scores.score_run": (
        ["run"],
        {"other": "{'name': 'images.npz'}", "size": "4", "device": "'cpu'", "out": "'s.json'"},
    ),
    "ng.uncertainty.uncertainty": (["fit", "data"], {"precisions": "2", "draws": "2", "seed": "0"}),
    "ng.dimension.two_nn": (["codes"], {"discard": "0.2"}),
    "ng.dimension.mle": (["codes"], {"k": "5"}),
    "ng.dimension.components": (["codes"], {"share": "0.9"}),
    "ng.metrics.sharpness": (["unit"], {}),
    "ng.metrics.mutual_information": (["codes", "factors"], {"bins": "5"}),
    "ng.metrics.disentanglement": (["codes", "factors"], {"seed": "0"}),
    "ng.metrics.factor_vae_score": (["codes", "factors"], {"seed": "0"}),
    "ng.metrics.beta_vae_score": (["codes", "factors"], {"seed": "0"}),
    "ng.metrics.sap": (["codes", "factors"], {"continuous": "True"}),
    "ng.metrics.active_units": (["codes"], {"threshold": "0.01"}),
    "ng.metrics.information_entropy": (["np.array([1.0, 2.0])"], {}),
    "plots.save": ([AXES, "Path('a.png')"], {}),
    "plots.selection": (["fit", AXES], {}),
    "plots.reconstructions": (["fit", "data", "3", AXES], {}),
    "plots.precisions": (["rows", AXES], {}),
    "plots.variances": (["torch.ones(4, 2)", "torch.ones(4, 2)", "rows", AXES], {}),
    "plots.covariance": (["torch.rand(4, 2)", "rows", AXES], {}),
    "fit.plot.traversals": (
        ["data", "None", "3", "1", AXES],
        {},
    ),
    "fit.traverse": (["data"], {"latents": "[1]", "steps": "3", "base": "2"}),
    "fit.interpolate": (["images[0]", "images[1]"], {"steps": "3"}),
    "distributions.conditional_kl": (["pair", "pair"], {}),
    "distributions.kl_bound": (["mixture", "mixture"], {}),
    "distributions.kl_monte_carlo": (["mixture", "mixture"], {"draws": "3"}),
}
for _name in ("mutual_information_gaps", "mig", "modularity", "dci", "explicitness", "irs"):
    CALLS[f"ng.metrics.{_name}"] = (["codes", "factors"], {})
for _name in ("correlations", "mcc"):
    CALLS[f"ng.metrics.{_name}"] = (["codes", "factors"], {"rank": "True"})
for _name in ("total_correlation", "decorrelation"):
    CALLS[f"ng.metrics.{_name}"] = (["codes"], {})
# Those that take images for a fit, or a model, which have to be of its shape.
OF_ITS_SHAPE = {"ng.fit", "ng.evaluate", "ng.to_arviz", "ng.log_likelihood", "ng.save_run"}
OF_ITS_SHAPE |= {"ng.scores.reference", "ng.scores.scores", "ng.uncertainty.uncertainty"}
OF_ITS_SHAPE |= {"plots.reconstructions"}

WRONG = ["None", "True", "-1", "0", "1", "2.5", "float('nan')", "float('inf')", "10**30", "'x'"]
WRONG += ["''", "b'x'", "[]", "{}", "()", "[1, 2]", "{'a': 1}", "object()", "np.zeros(3)"]
WRONG += ["np.zeros((4, 4))", "np.array('x')", "torch.zeros(3)", "torch.zeros(0)", "data.images"]
WRONG += ["torch.zeros(2, 2, dtype=torch.int64)", "np.full((24, 2), np.nan)", "Path('nowhere')"]
WRONG += ["'nowhere/x.png'", "data", "fit", "model", "guide", "spec", "print", "range(3)", "other"]
WRONG += ["single", "np.int64(2)", "np.float32(0.5)", "'a\\nb\\x1b[2J'", "'x' * 5000"]
WRONG += ["other_model"]
WRONG += ["other_guide", "other_fit", "np.zeros((24, 0))", "np.ones((24, 2))", "-0.5", "'\\udcff'"]
WRONG += ["unit", "images", "codes", "factors", "SubModel", "2**62", "np.array(['a'] * 24)"]
WRONG += ["'cuda:9'"]


# What somebody may well give for an argument, by the text of the good one.
NUMBERS = ["-1", "0", "1", "2.5", "float('nan')", "float('inf')", "10**30", "2**62", "'2'", "None"]
NUMBERS += ["True", "np.int64(2)", "np.float32(0.5)", "torch.tensor(2)", "-0.5", "[2]"]
IMAGES = ["other", "single", "images", "unit", "images.numpy()", "'images.npz'", "codes", "None"]
IMAGES += ["data.images[0]", "[data, data]", "other.images", "ng.sprites(4)"]
FITS = ["model", "guide", "other_fit", "run", "None", "(model, guide)"]
FITS += ["ng.Fit(model, guide, spec)"]
TABLES = ["codes", "factors", "codes[0]", "codes[:1]", "codes.T", "codes * np.nan", "codes[:, :0]"]
TABLES += ["np.zeros((24, 2))", "np.array([['a', 'b']] * 24)", "codes.tolist()"]
TABLES += ["torch.zeros(24, 2)"]
TABLES += ["codes * 1e300", "codes[:5]", "codes.astype(object)", "codes > 0", "data", "None"]
TABLES += ["codes[::2]"]
PATHS = ["'nowhere/x.png'", "'a.txt'", "''", "'out'", "'images.npz'", "'a.png'", "None"]
PATHS += ["'a\\nb.png'"]
PATHS += ["'a' * 300", "Path('nowhere')", "'\\udcff.png'", "b'x.png'"]
PAIRS = [
    "distributions.NormalGamma(torch.zeros(3), 2.0, 3.0)",
    "torch.distributions.Gamma(2.0, 3.0)",
]
PAIRS += ["torch.distributions.Normal(0.0, 1.0)", "mixture", "pair", "None", "3", "model.marginal"]
SPECS = ["ng.FitSpec()", "{'steps': 2}", "None", "ng.ModelSpec()", "2"]
PLAUSIBLE = {
    **dict.fromkeys(["data", "images", "unit"], IMAGES),
    "fit": FITS,
    "model": [
        "guide",
        "fit",
        "other_model",
        "'gaussian'",
        "SubModel",
        "None",
        "type(model)",
        "spec",
    ],
    "guide": ["model", "other_guide", "'gaussian'", "None", "fit", "guide.spec"],
    **dict.fromkeys(["codes", "factors", "torch.rand(4, 2)", "torch.ones(4, 2)"], TABLES),
    **dict.fromkeys(["Path('a.png')", "folder", "run", "'checkpoints'", "'images.npz'"], PATHS),
    **dict.fromkeys(["'s.json'", "'x'"], PATHS),
    "'counts'": [*PATHS, "'run'", "data"],
    "[0.5, 2.0]": [
        *("2.0", "[]", "['2']", "[1.0]", "[2.0, 2.0]", "[0.0]", "[-1.0]", "(1e-9, 2)", "[True]"),
        *("[float('nan')]", "[10**400]", "np.array([2.0])", "[np.float32(2.0)]", "None"),
    ],
    COUNTED: ["'normal_gama'", "'gaussian'", "model", "guide.spec", "None", "''", "{}"],
    "'relaxed'": ["'relaxd'", "'gaussian'", "guide", "model.spec", "None", "'x.toml'"],
    "0.2": ["'a'", "0.0", "1.0", "-0.1", "0.999", "float('nan')", "None", "True", "2"],
    **dict.fromkeys(["pair", "mixture"], PAIRS),
    **dict.fromkeys(["spec", SPEC], SPECS),
    "rows": ["[]", "{}", "None", "ng.evaluate(fit, data)", "rows[:1]", "rows * 3"],
    "'gaussian'": ["'gausian'", "'x.toml'", "model.spec", "guide.spec", "None", "''", "'poisson'"],
    "'cpu'": ["'gpu'", "'cuda'", "'cuda:99'", "torch.device('cpu')", "None", "0", "'cpu:0'"],
    "'a'": ["None", "''", "'a\\nb'", "3"],
    SMALL: ["{}", "None", "{'width': 0}", "{'wdth': 4}", "4", "{'kind': 'conv'}", "{'kind': 'x'}"],
    "{'name': 'images.npz'}": ["'images.npz'", "{}", "None", "{'name': 3}", "data", "{'nam': 'x'}"],
    "known": ["None", "data", "fit", "codes"],
    "('x', 'y')": ["'x'", "('x', 'x')", "()", "('q',)", "[3]", "None"],
    "('a', 'b')": [
        "'ab'",
        "['a', 'b']",
        "('a',)",
        "('a', 'a')",
        "None",
        "(1, 2)",
        "np.array(['a', 'b'])",
    ],
    "{'size': 0.2}": ["{'size': 'x'}", "{'q': 1}", "{'size': 9.0}", "{'size': None}", "0.2"],
    "{'x': (0.4, 0.6)}": [
        "{'x': 0.4}",
        "{'x': (0.6, 0.4)}",
        "{'x': ('a', 'b')}",
        "{'q': (0, 1)}",
        "(0, 1)",
    ],
}


class Names(dict[str, Any]):
    """What the source text of a case may name; networks are new ones each time."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        kept = copy.deepcopy(_trained(bench))
        generator = np.random.default_rng(0)
        (folder / "out").mkdir(exist_ok=True)
        super().__init__(
            **kept,
            ng=ng,
            np=np,
            torch=torch,
            plots=plots,
            Figure=Figure,
            distributions=distributions,
            Path=Path,
            folder="out",
            run="run",
            codes=generator.standard_normal((24, 2)),
            factors=np.stack([np.arange(24.0) % 3, generator.random(24)], 1),
            frozen=frozen,
            swapped=swapped,
        )

        class SubModel(type(kept["model"])): ...

        SubModel.__qualname__ = "SubModel"
        self["SubModel"] = copy.copy(kept["model"])
        self["SubModel"].__class__ = SubModel
        unit = ImageData.to_unit(kept["data"].images)
        self |= {"unit": unit, "images": kept["data"].images}
        self["pair"] = distributions.NormalGamma(0.0, 2.0, 3.0)
        self["mixture"] = distributions.GammaMixture(0.5, concentration=(2.0, 3.0), rate=(1.0, 2.0))


_KEPT: dict[str, Any] = {}


def _trained(bench: Bench) -> dict[str, Any]:
    """Fits and images that all cases share, before they are copied."""
    if _KEPT.get("bench") != bench.folder:
        data = loading.load(bench.folder / "base" / "images.npz")
        fit, spec = runs.load_run(bench.run_folder, "cpu")
        small: Any = {"width": 4, "depth": 1}
        other = ng.load_model("normal_gamma", (1, 28, 28), latent_size=3, decoder=small)
        guide = ng.load_guide("relaxed", other, encoder=small)
        _KEPT.clear()
        _KEPT.update(
            bench=bench.folder,
            fit=fit,
            model=fit.model,
            guide=fit.guide,
            spec=spec,
            data=data,
            other=ImageData("other", data.images[:, :, :24, :20]),
            single=data.subset([0]),
            other_model=other,
            other_guide=guide,
            other_fit=ng.Fit(other, guide, ng.FitSpec(steps=2, batch_size=8, device="cpu")),
            rows=ng.evaluate(fit, data) and _rows(ng.evaluate(fit, data)),
            known=ng.scores.reference(fit, data),
        )
    return {name: value for name, value in _KEPT.items() if name != "bench"}


def _rows(metrics: dict[str, Any]) -> Any:
    from ngvae_pyro.evaluation import diagnostics

    return diagnostics.most_informative_first(metrics)


def frozen(array: Any) -> Any:
    """An array that cannot be written to."""
    array = array.copy()
    array.flags.writeable = False
    return array


def swapped(array: Any) -> Any:
    """An array in the byte order of other machines."""
    return array.astype(array.dtype.newbyteorder())


@contextmanager
def within(folder: Path) -> Iterator[list[warnings.WarningMessage]]:
    """Quietly, in a folder, and with what is slow taken out; it gives the warnings."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            lightened(),
            warnings.catch_warnings(record=True) as caught,
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
            impatient(),
        ):
            warnings.simplefilter("always")
            yield caught
    finally:
        os.chdir(before)


@dataclass
class Call:
    """A call, as source text."""

    function: str
    words: list[str]
    options: dict[str, str] = field(default_factory=dict)
    kind: str = "Python call"

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.kind}: {self.function}({', '.join([*self.words, *options])})"

    def run(self, bench: Bench) -> Result:
        folder = bench.emptied()
        shutil.copytree(bench.inside, folder / "run")
        names = Names(bench, folder)
        function = eval(self.function, names)
        words = [eval(word, names) for word in self.words]
        options = {name: eval(value, names) for name, value in self.options.items()}
        before = snapshot(folder)
        found: list[Any] = []
        with within(folder) as notices:
            outcome, why = called(function, words, options, found)
        if outcome == "success" and self.function in OF_ITS_SHAPE:
            why = _of_one_shape([*words, *options.values()])
        if outcome == "success" and not why:
            asked = inspect.signature(function).bind(*words, **options).arguments
            told = any(issubclass(notice.category, Notice) for notice in notices)
            why = "" if told else _as_asked(self.function, asked, found[0])
        elif outcome == "UserError" and not why and snapshot(folder) != before:
            why = "refused, and something was written"
        return Result("failure" if why else {"success": "success"}.get(outcome, "exit 2"), why)


def called(
    function: Any, words: list[Any], options: dict[str, Any], found: list[Any]
) -> tuple[str, str]:
    """How a call ended, and why that is wrong if it is; its result is put where it is asked for."""
    try:
        found.append(function(*words, **options))
    except UserError as error:
        return "UserError", told(error)
    except NonFiniteLoss:
        return "diverged", ""
    except NotImplementedError as error:
        # What torch raises for a KL that nobody has registered.
        declared = function is distributions.conditional_kl
        return "NotImplementedError", "" if declared else f"NotImplementedError: {error}"
    except (Exception, Slow) as error:
        if isinstance(error, TypeError) and not _binds(function, words, options):
            return "TypeError", ""
        return "other", f"{type(error).__name__}: {error}"[:400]
    return "success", ""


def _as_asked(name: str, asked: dict[str, Any], found: Any) -> str:
    """That numbers are numbers, and as many draws and images as were asked for."""
    if name == "ng.to_arviz":
        posterior = getattr(found.posterior, "dataset", found.posterior)
        usual = {"chains": 1, "draws_per_chain": 1000, "observations": 50}
        wanted = {**usual, **{key: asked[key] for key in usual if key in asked}}
        if "observations" not in asked:
            wanted["observations"] = min(50, len(asked["data"]))
        got = [int(posterior.sizes[key]) for key in ("chain", "draw", "image")]
        return "" if got == [*wanted.values()] else f"{got} of {wanted}"
    if name == "ng.log_likelihood" and not np.isfinite(found.values).all():
        return f"{np.isnan(found.values).sum()} of {len(found.values)} values are no numbers"
    if name == "ng.uncertainty.uncertainty" and not found.total.isfinite().all():
        return "not finite"
    return ""


def told(error: UserError) -> str:
    """What is wrong with a message."""
    if not str(error).isprintable():
        return f"a message that is not one printable line: {str(error)!r:.300}"
    if len(str(error)) > LONGEST:
        return f"a message of {len(str(error))} characters: {error!s:.100}"
    return ""


def _binds(function: Any, words: list[Any], options: dict[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(*words, **options)
    except TypeError:
        return False
    return True


def _of_one_shape(values: list[Any]) -> str:
    shapes = {
        tuple(getattr(getattr(value, "model", value), "image_shape", ())) for value in values
    } - {()}
    return f"success with images of shapes {sorted(shapes)}" if len(shapes) > 1 else ""


def wrong(chance: random.Random, good: str, wild: bool) -> str:
    """Another argument in the place of a good one."""
    return chance.choice(WRONG if wild else PLAUSIBLE.get(good, NUMBERS))


def call_case(chance: random.Random, wild: bool) -> Call:
    """A call with an argument or two wrong, swapped, left out, or too many.

    Args:
        chance: What chooses.
        wild: Whether wrong arguments are of any type, and not only what somebody may well give.
    """
    function = chance.choice(sorted(CALLS))
    given, possible = CALLS[function]
    words, options = list(given), {k: v for k, v in possible.items() if chance.random() < 0.5}
    if function in ("ng.fit", "ng.count"):
        # With small networks and few steps.
        options = dict(possible)
    ways = ["word"] * 6 + ["option"] * 4 + ["swap", "drop", "unknown", "more"]
    for _ in range(chance.choice([0] + [1] * 8 + [2])):
        way, at = chance.choice(ways), chance.randrange(max(1, len(words)))
        if way == "word" and words:
            words[at] = wrong(chance, words[at], wild)
        elif way == "option" and possible:
            name = chance.choice(sorted(possible))
            options[name] = wrong(chance, possible[name], wild)
        elif way == "swap" and len(words) > 1:
            words[0], words[at] = words[at], words[0]
        elif way == "drop" and words:
            del words[at]
        elif way == "unknown":
            options[chance.choice(["steps", "step", "x", "latents"])] = "600"
        elif way == "more":
            words.append(wrong(chance, "", wild))
    return Call(function, words, options, "Python call, any types" if wild else "Python call")


# Arrays --------------------------------------------------------------------------------------


SHAPES = ["(10, 28, 28)", "(10, 28, 28)", "(10, 1, 28, 28)", "(10, 28, 28, 1)", "(10, 28, 28, 3)"]
SHAPES += ["(10, 3, 28, 28)", "(10, 3, 28, 3)", "(10, 1, 28, 1)", "(10, 2, 28, 28)", "(2, 28, 28)"]
SHAPES += ["(1, 28, 28)", "(1, 1, 28, 28)", "(28, 28)", "(28,)", "()", "(0, 28, 28)", "(10, 0, 28)"]
SHAPES += ["(10, 1, 28, 28, 1)", "(10, 5, 6, 7)", "(3, 28, 28)", "(10, 1, 1, 28)"]
SHAPES += ["(10, 28, 28, 4)"]
MADE = ["np.random.default_rng(0).integers(0, 256, {shape}).astype('u1')"]
MADE += ["np.random.default_rng(0).integers(0, 2, {shape}).astype('u1')"]
MADE += ["np.random.default_rng(0).integers(0, 2, {shape}).astype(bool)"]
MADE += ["np.random.default_rng(0).random({shape}).astype('f4')"]
MADE += ["np.random.default_rng(0).random({shape})"]
MADE += ["np.random.default_rng(0).random({shape}).astype('f2')"]
MADE += ["np.random.default_rng(0).integers(0, 256, {shape})", "np.zeros({shape}, 'u1')"]
MADE += ["np.ones({shape}, 'u1')", "np.full({shape}, 255, 'u1')"]
MADE += ["np.random.default_rng(0).integers(0, 2, {shape}).astype('f4')"]
MADE += ["np.full({shape}, np.nan)", "(np.random.default_rng(0).random({shape}) * 255)"]
MADE += ["(np.random.default_rng(0).random({shape}) - 0.5)"]
TYPES = ["'i1'", "'u2'", "'i4'", "'i8'", "'f8'", "'longdouble'", "'c8'", "'S3'", "'U2'", "object"]
TYPES += ["'datetime64[s]'", "'>f4'", "'>u2'", "[('a', 'u1')]"]
LAYOUTS = ["{0}", "{0}", "{0}", "np.asfortranarray({0})", "{0}[::-1]", "{0}[::2]", "{0}.T"]
LAYOUTS += ["frozen({0})", "swapped({0})", "np.ma.masked_array({0})", "{0}.tolist()"]
LAYOUTS += ["memoryview({0})"]
LAYOUTS += ["np.broadcast_to({0}[:1], {0}.shape)", "np.moveaxis({0}, -1, 1)", "list({0})"]
TENSORS = ["torch.from_numpy({0})"] * 5 + ["torch.from_numpy({0}).to(torch.bfloat16)"]
TENSORS += ["torch.from_numpy({0}).half()", "torch.from_numpy({0}).to('meta')"]
TENSORS += ["torch.from_numpy({0}).requires_grad_()", "torch.from_numpy({0}).to_sparse()"]
TENSORS += ["torch.from_numpy({0}).flip(0)", "torch.from_numpy({0}).transpose(0, -1)"]
TENSORS += [
    "torch.from_numpy({0}).expand(10, *{0}.shape[1:])",
    "torch.nn.Parameter(torch.from_numpy({0}))",
]
TENSORS += ["torch.from_numpy({0}).to(torch.int64)", "torch.from_numpy({0}).to(torch.complex64)"]
ODD = ["None", "3", "'x'", "object()", "[]", "[[1, 2], [3]]", "np.array(None)", "{}", "range(3)"]
ODD += ["b'x'"]
USES = ["ng.ImageData('a', x)"] * 6 + ["ng.load_data(x)", "ng.fit(model, guide, x, " + SPEC + ")"]
USES += ["ng.evaluate(fit, x)", "ng.log_likelihood(fit, x, draws=25)"]
USES += ["ng.load_model('gaussian', x)"]
USES += ["ng.to_arviz(fit, x, observations=2, chains=1, draws_per_chain=2)"]
FACTORS = ["np.arange(10.0)[:, None]", "np.arange(10)", "torch.arange(10.0)[:, None]", "None", "3"]
FACTORS += ["np.full((10, 1), np.nan)", "np.array([['a']] * 10)", "[[1.0]] * 10"]
FACTORS += ["np.zeros((9, 1))"]
FACTOR_NAMES = ["('a',)", "['a']", "'a'", "(3,)", "None", "('a', 'a')", "np.array(['a'])", "()"]
FACTOR_NAMES += ["('a\\nb',)"]


@dataclass
class Images:
    """An array, and what is made of it."""

    source: str
    use: str
    kind: str = "array in memory"

    def __str__(self) -> str:
        return f"{self.kind}: x = {self.source}; {self.use}"

    def run(self, bench: Bench) -> Result:
        folder = bench.emptied()
        names = Names(bench, folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = names["x"] = eval(self.source, names)
        except (ValueError, TypeError, RuntimeError, IndexError):
            # There is no such array.
            return Result("exit 2")
        before = snapshot(folder)
        found: list[Any] = []
        with within(folder):
            outcome, why = called(lambda: eval(self.use, names), [], {}, found)
        if outcome == "success" and self.use.startswith("ng.ImageData"):
            why = _as_in_a_file(x, found[0], folder)
        elif outcome == "success":
            why = self._as_with_images(x, found[0], names, folder)
        elif outcome == "UserError" and not why and snapshot(folder) != before:
            why = "refused, and something was written"
        return Result("failure" if why else {"success": "success"}.get(outcome, "exit 2"), why)

    def _as_with_images(self, x: Any, found: Any, names: Names, folder: Path) -> str:
        """That a function makes of an array what it makes of the same array in a file."""
        if x is None and self.use.startswith("ng.load_model"):
            return "success without images"
        read = _from_file(x, folder)
        if read is None:
            return "success with an array that a file could not hold"
        if isinstance(found, ImageData):
            return _as_in_a_file(x, found, folder)
        if self.use.startswith("ng.evaluate"):
            wanted = ng.evaluate(copy.deepcopy(names["fit"]), read)
            return "" if wanted == found else "other numbers than with the same images from a file"
        if self.use.startswith("ng.log_likelihood"):
            wanted = evidence.log_likelihood(copy.deepcopy(names["fit"]), read, draws=25)
            same = np.array_equal(wanted.values, found.values)
            return "" if same else "other numbers than with the same images from a file"
        is_model = self.use.startswith("ng.load_model")
        if is_model and tuple(found.image_shape) != tuple(read.image_shape):
            return f"a model of {found.image_shape} for images of {read.image_shape}"
        return ""


def _from_file(x: Any, folder: Path) -> ImageData | None:
    """The same array, written to a file and read."""
    if isinstance(x, torch.Tensor):
        if x.dtype == torch.bfloat16:
            x = x.float()
        try:
            x = x.detach().cpu().numpy()
        except (TypeError, RuntimeError, NotImplementedError):
            return None
    try:
        array = np.asarray(x)
        # A file has to have two images.
        single = array.ndim in (3, 4) and len(array) == 1
        array = np.concatenate([array, array]) if single else array
        if array.ndim == 2:
            np.save(folder / "x.npy", array, allow_pickle=False)
            return loading.load(folder / "x.npy")
        (folder / "x.npz").write_bytes(npz({"imgs": array}))
        read = loading.load(folder / "x.npz")
        return read.subset([0]) if single else read
    except (UserError, ValueError, TypeError):
        return None
    finally:
        (folder / "x.npz").unlink(missing_ok=True)
        (folder / "x.npy").unlink(missing_ok=True)


def _as_in_a_file(x: Any, found: ImageData, folder: Path) -> str:
    read = _from_file(x, folder)
    unit = ImageData.to_unit(found.images)
    if read is not None:
        wanted = ImageData.to_unit(read.images)
        if wanted.shape != unit.shape:
            return f"shape {tuple(unit.shape)}, from a file {tuple(wanted.shape)}"
        if not torch.equal(wanted, unit):
            return f"up to {(wanted - unit).abs().max():g} from what a file gives"
    else:
        # What only files refuse: channels other than 1 and 3.
        shape = np.shape(x)
        if len(shape) != 4 or shape[1] in (1, 3) or shape[3] in (1, 3):
            return f"shape {shape} is taken as {tuple(unit.shape)}, which no file may hold"
    if found.form.unit and not bool((unit >= 0).all() and (unit <= 1).all()):
        return "values outside of [0, 1]"
    if not torch.equal(ImageData.to_unit(found.subset([0]).images), unit[:1]):
        return "the first image is another one in a subset"
    return ""


def array_case(chance: random.Random) -> Images:
    """An array or a tensor of any type and layout, or what is none, and a use of it."""
    use = chance.choice(USES)
    if not chance.randint(0, 11):
        return Images(chance.choice(ODD), use)
    source = chance.choice(MADE).format(shape=chance.choice(SHAPES))
    if not chance.randint(0, 6):
        source = f"{source}.astype({chance.choice(TYPES)})"
    way = chance.choice(["layout", "tensor", "tensor"])
    source = chance.choice(LAYOUTS if way == "layout" else TENSORS).format(source)
    if use.startswith("ng.ImageData") and not chance.randint(0, 7):
        factors, names = chance.choice(FACTORS), chance.choice(FACTOR_NAMES)
        use = f"ng.ImageData('a', x, {factors}, {names})"
    return Images(source, use)


KINDS: dict[str, Callable[[random.Random, Bench], Any]] = {
    "arrays": lambda chance, bench: array_case(chance),
    "calls": lambda chance, bench: call_case(chance, wild=False),
    "types": lambda chance, bench: call_case(chance, wild=True),
}
