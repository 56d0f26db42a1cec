"""Likelihoods, code of somebody else's by its import path, and what a training loop is told.

As in ``data_cases.py`` an oracle says what has to become of a case where that is plain.
"""

import random
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from data_cases import Program, agreed, line_case
from folder_cases import Arranged
from input_cases import GOOD, IMAGES, Bench, Result, npz

from ngvae_pyro.specs.pair import LIKELIHOOD_KEYS

# Likelihoods ---------------------------------------------------------------------------------


CLASSES = np.eye(3, dtype="u1")[np.random.default_rng(0).integers(0, 3, (24, 8, 8))]
COUNTS = np.random.default_rng(0).poisson(3.0, (24, 6))
DATA: dict[str, Any] = {
    "bytes": GOOD,
    "binary": (GOOD > 127).astype("u1"),
    "unit": np.random.default_rng(0).random((24, 8, 8)),
    "vectors": np.random.default_rng(0).normal(size=(24, 6)),
    "counts": COUNTS,
    "counts as floats": COUNTS.astype(float),
    "counts of images": np.random.default_rng(0).poisson(3.0, (24, 8, 8)),
    "negative": COUNTS - 2,
    "fractions": COUNTS + 0.5,
    "no counts": np.zeros((24, 6)),
    "a row of none": np.where(np.arange(24)[:, None] == 3, 0, COUNTS),
    "a column of none": np.where(np.arange(6) == 3, 0, COUNTS),
    "large counts": COUNTS * 10**9,
    "larger counts": COUNTS.astype(float) * 1e300,
    "classes": CLASSES,
    "classes as floats": CLASSES.astype(float),
    "no class": CLASSES * (np.arange(24) != 3)[:, None, None, None].astype("u1"),
    "two classes": np.maximum(CLASSES, CLASSES[::-1]),
}
COUNTED = {"counts", "counts as floats", "counts of images", "a row of none", "a column of none"}
FAMILIES = ["auto", "gaussian", "bernoulli", "continuous_bernoulli", "categorical", "student_t"]
FAMILIES += ["poisson", "negative_binomial"]
WRONG_FAMILIES = ["own", "gausian", ""]
VALUES = {
    "scale": (["0.1", "1.0", "'auto'"], ["0", "-1", "nan", "inf", "'x'", "1e5", "true", "[1]"]),
    "learned": (["true", "false"], ["1", "'yes'", "nan"]),
    "per": (["'all'", "'channel'", "'value'", "'auto'"], ["'column'", "3", "true"]),
    "df": (["3.0", "5", "1e4"], ["2.0", "0", "-1", "inf", "nan", "'x'"]),
    "exposure": (["'none'", "'total'", "'auto'"], ["'mean'", "1.0", "true"]),
    "whole_numbers": (["true", "false"], ["1", "'x'"]),
    "options": (["{}"], ["{a = 1}", "3", "[]"]),
}


def likelihood_case(chance: random.Random, bench: Bench) -> Arranged:
    """A family, some of its keys or of others', and data that it suits or does not."""
    name = chance.choice(sorted(DATA))
    family = chance.choice(FAMILIES * 4 + WRONG_FAMILIES)
    settings = [f"model.likelihood.family={family!r}"]
    good: bool | None = True
    if family in WRONG_FAMILIES:
        good = False
    elif family in ("poisson", "negative_binomial"):
        if name in ("negative", "fractions", "vectors", "unit"):
            good = False
        elif name not in COUNTED:
            good = None
    elif family in ("bernoulli", "continuous_bernoulli"):
        if name in ("vectors", "counts as floats", "fractions", "negative", "counts"):
            good = False
        elif name not in ("bytes", "binary", "unit", "classes"):
            good = None
    elif family == "categorical":
        good = name in ("classes", "classes as floats")
        if name == "two classes":
            good = None
    elif name not in ("bytes", "binary", "unit", "vectors", "counts", "classes"):
        good = None
    own = LIKELIHOOD_KEYS.get("gaussian" if family == "auto" else family, ())
    # Mostly those of the family.
    keys = sorted(VALUES if not chance.randint(0, 3) else VALUES.keys() & {*own})
    for key in chance.sample(keys, min(len(keys), chance.choice([0, 1, 1, 2]))):
        right = chance.randint(0, 3)
        settings.append(f"model.likelihood.{key}={chance.choice(VALUES[key][not right])}")
        good = agreed(good, bool(right) and key in own)
    if chance.randint(0, 5) == 0:
        settings.append(f"model.prior.family={chance.choice(['gaussian', 'poisson', 'x'])!r}")
        good = None
    files = {"x.npz": npz({"imgs": DATA[name]})} if name != "bytes" else {IMAGES: b""}
    return line_case(chance, "likelihood", files, settings, good)


# Code of somebody else's ---------------------------------------------------------------------


HEAD = "import torch\nimport pyro\nimport pyro.distributions as dist\nfrom torch import nn\n"
HEAD += "from ngvae_pyro.likelihoods import Likelihood\n"
ERRORS = ["ValueError('no\\nway')", "RuntimeError()", "KeyError('k')", "TypeError('t')"]
ERRORS += ["AssertionError('a')", "ZeroDivisionError()", "NotImplementedError()", "IndexError('i')"]
ERRORS += ["AttributeError('x')", "OSError('o')"]
ERRORS += [
    "ImportError('i')",
    "LookupError('\\x1b[2J')",
    "OverflowError('x' * 9999)",
]

# What a network gives for inputs of the flat size n in and m out, and whether that is right.
FORWARD = {
    "self.map(x.flatten(1))": True,
    "self.map(x.flatten(1)) * 2": True,
    "self.map(x.flatten(1)).tolist()": False,
    "None": False,
    "(self.map(x.flatten(1)),)": False,
    "self.map(x.flatten(1)).double()": False,
    "self.map(x.flatten(1)) * 1j": False,
    "self.map(x.flatten(1))[0]": False,
    "self.map(x.flatten(1)).sum()": False,
    "self.map(x.flatten(1))[:, :0]": False,
    "self.map(x.flatten(1)) - self.map(x.flatten(1)).mean(0)": False,
    "self.map(x.flatten(1)[:, :3])": False,
    "self.norm(self.map(x.flatten(1)))": False,
    "self.nowhere(x)": False,
    "x": None,
    "self.map(x.flatten(1)) * float('nan')": None,
    "self.map(x.flatten(1)).detach()": None,
    "torch.zeros(len(x), self.out)": None,
    "self.map(x.flatten(1)) + torch.rand(1)": None,
    "self.map(x.mul_(2).flatten(1))": None,
    "self.map(x.flatten(1)).to_sparse()": None,
    "self.map(x.flatten(1))[:, None]": None,
    "self.map(x.flatten(1))[..., None]": None,
    "self.map(x.flatten(1).numpy())": None,
    "nn.functional.dropout(self.map(x.flatten(1)))": None,
}
SIGNATURES = {"self, shape, width": True, "self, shape, width, *, more=1": True}
SIGNATURES |= {"self": False, "self, shape": False, "self, *, shape, width": False}
SIGNATURES |= {"self, shape, width, more": False, "self, shape=None, width=None, **more": True}


def _network(chance: random.Random, part: str) -> tuple[str, bool | None]:
    """The source of a network, with something odd about it or not."""
    forward, good = chance.choice(list(FORWARD.items()))
    if chance.randint(0, 1):
        forward, good = next(iter(FORWARD.items()))
    signature, may = chance.choice(list(SIGNATURES.items()) + 6 * [("self, shape, width", True)])
    good = agreed(good, may)
    # An encoder's input are images, a decoder's a row of the width.
    sides = ("n, self.out = width, int(torch.tensor(shape).prod())",)
    if part == "encoder":
        sides = ("n, self.out = int(torch.tensor(shape).prod()), 5",)
    body = ["super().__init__()", *sides, "self.map = nn.Linear(n, self.out)"]
    body.append("self.norm = nn.BatchNorm1d(self.out)" if "norm" in forward else "pass")
    odd = chance.choice(
        [""] * 6 + ["raise", "no super", "buffer", "frozen", "double", "nan", "state"]
    )
    if odd == "raise":
        body.append(f"raise {chance.choice(ERRORS)}")
        good = False
    elif odd == "no super":
        body = body[1:]
        good = False
    elif odd == "buffer":
        body.append("self.register_buffer('b', torch.zeros(3))")
    elif odd == "frozen":
        body.append("self.requires_grad_(False)")
    elif odd == "double":
        body.append("self.double()")
        good = False
    elif odd == "nan":
        body.append("self.map.weight.data.fill_(float('nan'))")
        good = None
    elif odd == "state":
        body.append("self.get_extra_state = lambda: 3")
        good = None
    lines = ["class Net(nn.Module):", f"    def __init__({signature}):"]
    lines += [f"        {line}" for line in body]
    lines += ["    def forward(self, x):", f"        return {forward}"]
    if not chance.randint(0, 7):
        instead = ["Net = 3", "def Net(shape, width): return nn.Linear(width, 4)", "Net = None"]
        instead += [
            "class Net: pass",
            "Net = nn.Linear(3, 3)",
            "Net = nn",
            "class Net(nn.Module): pass",
        ]
        return chance.choice(instead), False
    return "\n".join(lines), good


def _likelihood(chance: random.Random) -> tuple[str, bool | None]:
    """The source of a likelihood."""
    returned = {
        "dist.Laplace(output, self.s.exp()).to_event(3)": True,
        "dist.Normal(output, 1.0).to_event(3)": True,
        "dist.Normal(output, 1.0)": False,
        "dist.Cauchy(output, 1.0).to_event(3)": False,
        "output": False,
        "None": False,
        "dist.Normal(output.flatten(1), 1.0).to_event(1)": False,
        "dist.Normal(output, 0.0 * output).to_event(3)": None,
        "dist.Normal(output[:1], 1.0).to_event(3)": False,
        "dist.Normal(output.nowhere, 1.0).to_event(3)": False,
        "dist.Normal({}[3], 1.0).to_event(3)": False,
        "dist.Normal([][3], 1.0).to_event(3)": False,
        "dist.Poisson(output.exp()).to_event(3)": None,
        "dist.Normal(output * float('nan'), 1.0).to_event(3)": False,
    }
    fn, good = chance.choice([*returned.items(), *4 * [next(iter(returned.items()))]])
    body = ["super().__init__(spec, image_shape)", "self.s = nn.Parameter(torch.zeros(()))"]
    signature, may = chance.choice(
        [("self, spec, image_shape, a=1", True)] * 3
        + [
            ("self, spec, image_shape", True),
            ("self", False),
            ("self, spec, image_shape, a", False),
        ]
    )
    if not chance.randint(0, 4):
        body.append(f"raise {chance.choice(ERRORS)}")
        may = False
    base = chance.choice(["Likelihood"] * 5 + ["nn.Module", "object"])
    if base != "Likelihood":
        may = False
    lines = [f"class Net({base}):", f"    def __init__({signature}):"]
    lines += [f"        {line}" for line in body]
    argument = chance.choice(["self, output, x=None"] * 4 + ["self, output", "self"])
    if argument != "self, output, x=None":
        may = None if argument == "self, output" and may else False
    lines += [f"    def forward({argument}):", f"        return {fn}"]
    return "\n".join(lines), agreed(good, may)


PAIR = """
K, D = 2, 784
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(K, D)
    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            loc = self.map(z).unflatten(-1, x.shape[1:])
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(3), obs=x)
class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(D, K)
    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.map(x.flatten(1)), 0.5).to_event(1))
"""
# What is changed in the pair, and whether it is good then.
CHANGES: dict[tuple[str, str], bool | None] = {
    ("", ""): True,
    ('"z"', '"y"'): False,
    ('"x", dist', '"y", dist'): False,
    (", obs=x", ""): False,
    ("to_event(3)", "to_event(2)"): False,
    ("to_event(1)", "to_event(0)"): False,
    ('pyro.plate("data", len(x))', 'pyro.plate("data", 7)'): False,
    ('pyro.plate("data", len(x))', "torch.no_grad()"): False,
    ("forward(self, x)", "forward(self)"): False,
    ("forward(self, x)", "forward(self, x, y)"): False,
    ("__init__(self)", "__init__(self, more)"): False,
    ("nn.Linear(K, D)", "nn.Linear(K, 3)"): False,
    ("nn.Linear(D, K)", "nn.Linear(D, 3)"): False,
    ("nn.Module", "object"): False,
    ('pyro.module("guide", self)', "raise KeyError('oh')"): False,
    ('pyro.module("model", self)', "raise ValueError('a\\nb')"): False,
    ('pyro.module("guide", self)', "1 / 0"): False,
    ('pyro.module("guide", self)', "pyro.sample('u', dist.Normal(0., 1.))"): False,
    ("dist.Normal(loc, 0.5)", "dist.Normal(loc, -0.5)"): False,
    ("dist.Normal(loc, 0.5)", "dist.Normal(loc * float('nan'), 0.5)"): False,
    ("super().__init__()", "pass"): False,
    ("torch.zeros(K)", "torch.zeros(x.shape[0], K)"): None,
    ('pyro.module("guide", self)', "nn.BatchNorm1d(3)"): None,
    ("0.5).to_event(1)", "pyro.param('s', torch.ones(()))).to_event(1)"): None,
}
# Names of what is in a module "mod", and whether they name something.
PATHS = [
    "",
    ":",
    "{0}",
    "{0}:",
    ":Net",
    "{0}:net",
    "{0}:Net.x",
    "nowhere:Net",
    ".{0}:Net",
    "{0}.x:Net",
]
PATHS += [
    "{0}:Net:Net",
    " {0}:Net",
    "{0}: Net",
    "os:system",
    "torch.nn:Module",
    "a b:c",
    "{0}/x:Net",
]
PATHS += [
    "..:Net",
    "builtins:eval",
    "{0}:Net.__init__",
    "\\u0000:Net",
    "{0}:Net()",
    "x" * 300 + ":N",
]
BODIES = [
    "raise ValueError('in the\\nmodule')",
    "import nowhere",
    "def (",
    "1 / 0",
    "raise SystemExit(3)",
]
BODIES += [
    "undefined",
    "assert False",
    "\0",
    "\udcff",
    "raise ImportError",
]


@dataclass
class Coded:
    """A case with a module of somebody's in its folder, which is forgotten afterwards."""

    case: Arranged
    modules: set[str]
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = self.case.kind

    def __str__(self) -> str:
        sources = [
            f"{step[1]}:\n{step[2].decode('utf-8', 'replace').removeprefix(HEAD)}"
            for step in self.case.steps
        ]
        return "\n".join([str(self.case), *sources])

    def run(self, bench: Bench) -> Result:
        try:
            # Compiled modules are not of the run.
            with mock.patch.object(sys, "dont_write_bytecode", True):
                return self.case.run(bench)
        finally:
            for name in self.modules:
                sys.modules.pop(name, None)


def own_case(chance: random.Random, bench: Bench) -> Coded:
    """A network, a likelihood or a pair by its import path."""
    part = chance.choice(["decoder", "encoder", "likelihood", "pair", "pair"])
    good: bool | None
    if part == "pair":
        (old, new), good = chance.choice([*CHANGES.items(), *5 * [(("", ""), True)]])
        source = PAIR.replace(old, new) if old else PAIR
    elif part == "likelihood":
        source, good = _likelihood(chance)
    else:
        source, good = _network(chance, part)
    module = f"mod_{zlib.crc32(source.encode()):x}_{chance.randint(0, 10**9)}"
    path, model_path = f"{module}:Net", f"{module}:Model"
    odd = chance.choice([""] * 5 + ["path", "body"])
    text = (HEAD + source).encode()
    if odd == "path":
        path = chance.choice(PATHS).format(module)
        model_path = path.replace("Net", "Model")
        good = False
    elif odd == "body":
        body = chance.choice(BODIES)
        text = (HEAD + body + "\n" + source).encode("utf-8", "surrogateescape")
        good = False
    options = ""
    if part != "pair" and not chance.randint(0, 4):
        options = chance.choice(
            ["{more = 1}", "{a = 1}", "{a = {b = [1]}}", "3", "{width = 3}", "[]"]
        )
        good = False if options in ("3", "[]", "{width = 3}") else agreed(good, None)
    files = {IMAGES: b"", f"{module}.py": text}
    if part == "pair":
        files["m.toml"] = (
            f'latent_size = 2\n[prior]\nfamily = "own"\nfactory = {_quoted(model_path)}\n'
        )
        files["g.toml"] = f'family = "own"\nfactory = {_quoted(f"{module}:Guide")}\n'
        files = {name: f.encode() if isinstance(f, str) else f for name, f in files.items()}
        case = line_case(chance, "own code", files, [], good, model="m.toml", guide="g.toml")
        # Networks are the pair's own, which has no log likelihood.
        words = case.words
        for name in ("model.decoder", "guide.encoder", "model.latent_size"):
            for word in [w for w in words if w.startswith(name)]:
                at = words.index(word)
                del words[at - 1 : at + 1]
        if case.then[:1] != ["inspect"]:
            case.then = []
    else:
        where = {"decoder": "model.decoder", "encoder": "guide.encoder"}.get(
            part, "model.likelihood"
        )
        head = "family" if part == "likelihood" else "kind"
        table = f"{{{head} = 'own', factory = {_quoted(path)}"
        table += f", options = {options}}}" if options else "}"
        case = line_case(chance, "own code", files, [f"{where}={table}"], good)
    return Coded(case, {module})


def _quoted(text: str) -> str:
    return f'"{text}"'


# The loop ------------------------------------------------------------------------------------


LOOP: dict[str, tuple[list[str], list[str]]] = {
    "epochs": (["1", "2", "10"], ["0", "-1", "1.5", "'x'", "1000000000000", "nan"]),
    "optimizer": (["'adam'", "'adamw'"], ["'sgd'", "3", "''", "'Adam'"]),
    "weight_decay": (["0.0", "0.01", "10.0"], ["-1.0", "nan", "inf", "'x'", "1e9"]),
    "decay": (["'linear'", "'cosine'", "'none'"], ["'exp'", "none", "3", "''"]),
    "validation": (["0.1", "0.5", "0.2"], ["0.0", "1.0", "-0.1", "nan", "'x'", "2", "true"]),
    "early_stopping": (["1", "3"], ["0", "-1", "1.5", "true", "'x'"]),
    "monitor_every": (["1", "2", "1000"], ["0", "-1", "0.5"]),
    "decay_begin": (["0.0", "1.0", "0.5"], ["-0.1", "1.1", "nan"]),
    "clip_norm": (["1.0", "2000"], ["0", "-1", "inf"]),
    "particles": (["2"], ["0", "1.5"]),
    "batch_size": (["1", "7", "24", "100"], ["0", "-8", "1.5"]),
    "workers": (["0", "1"], ["-1", "1000", "0.5"]),
    "resident_bytes": (["1", "1000000"], ["0", "-1"]),
    "fast": (["true", "false"], ["1", "'x'"]),
    "network_dtype": (["'float32'", "'bfloat16'"], ["'float16'", "16"]),
    "elbo": (["'Trace_ELBO'", "'TraceMeanField_ELBO'"], ["'ELBO'"]),
}
CALLBACKS = ["ng.CsvLog('log.csv')", "ng.EarlyStopping(1)", "ng.Callback()", "Seen()", "Stops()"]
WRONG_CALLBACKS = ["None", "ng.Callback", "3", "print", "'x'", "ng.CsvLog", "Seen", "object()"]
BAD_CALLBACKS = ["ng.CsvLog('images.npz')", "ng.CsvLog('.')", "ng.CsvLog('images.npz/x')"]
BAD_CALLBACKS += ["ng.CsvLog('')", "ng.CsvLog(3)", "ng.EarlyStopping(0)", "ng.EarlyStopping(1.5)"]
BAD_CALLBACKS += ["ng.EarlyStopping(1, -1)", "ng.EarlyStopping(1, float('nan'))"]
BAD_CALLBACKS += ["ng.EarlyStopping('x')", "ng.CsvLog('a\\0b')", "ng.CsvLog(None)"]
ESTIMATOR = {
    "n_components": (["2", "np.int64(2)", "None"], ["0", "-1", "1.5", "'2'", "True", "10**9"]),
    "model": (
        ["'normal_gamma'"],
        ["'gausian'", "None", "3", "ng.FitSpec()", "''", "'nowhere.toml'"],
    ),
    "guide": (
        ["'relaxed'"],
        ["'relaxd'", "None", "3", "ng.ModelSpec()", "'poisson'", "b'relaxed'"],
    ),
    "steps": (["2", "np.int64(2)"], ["0", "-1", "2.5", "'2'", "True", "float('nan')"]),
    "batch_size": (["4", "100"], ["0", "-1", "1.5", "'4'"]),
    "learning_rate": (["1e-3", "np.float32(0.01)"], ["0", "-1", "'x'", "float('nan')"]),
    "scale": (["0.5", "None"], ["0.0", "-1.0", "'x'", "float('nan')", "[1.0]"]),
    "likelihood": (
        ["'gaussian'", "{'family': 'student_t'}", "lambda o: torch.distributions.Laplace(o, 1.0)"],
        ["'gausian'", "{}", "{'famly': 'x'}", "3", "[]", "{'family': 'gaussian', 'df': 3.0}", "''"],
    ),
    "held_out": (["0.2", "0.5"], ["0.0", "1.0", "-1", "'x'", "2", "float('nan')"]),
    "layout": (["'sequences'", "None"], ["'volumes'", "'x'", "3", "''", "True"]),
    "missing": (["True", "False"], ["'yes'", "None", "3"]),
    "device": (["'cpu'", "None"], ["'gpu'", "3", "'cuda:99'", "''"]),
    "validation": (["0.2", "None"], ["0.0", "1.0", "'x'", "-0.1", "2"]),
    "callbacks": (
        ["[]", "None", "[ng.Callback()]", "()"],
        ["3", "[3]", "ng.Callback()", "'x'", "{}"],
    ),
    "random_state": (["0", "np.random.RandomState(0)"], ["-1", "'x'", "2**32", "1.5", "object()"]),
    "verbose": (["False", "0"], []),
    "decoder": (
        ["ng.specs.MLPSpec(width=4, depth=1)", "lambda shape, width: torch.nn.Linear(width, 6)"],
        ["3", "'mlp'", "torch.nn.Linear(3, 3)", "torch.nn.Linear", "print", "{'kind': 'x'}", "[]"],
    ),
    "encoder": (
        ["ng.specs.MLPSpec(width=4, depth=1)"],
        ["3", "'mlp'", "torch.nn.Linear(3, 3)", "print", "{'kind': 'x'}", "int", "ng.FitSpec()"],
    ),
}
ROWS = ["rows"] * 6 + [
    "rows[:2]",
    "rows[:0]",
    "rows[:, 0]",
    "rows * np.nan",
    "rows.tolist()",
    "None",
]
ROWS += ["'nowhere.npz'", "rows.astype('f4')", "[[1, 'a']] * 9", "rows[:5]", "rows * 0", "rows > 0"]


def loop_case(chance: random.Random, bench: Bench) -> Any:
    """Keys of the loop, callbacks, and parameters of the estimator."""
    way = chance.choice(["keys", "keys", "callbacks", "estimator", "estimator"])
    if way == "keys":
        return _keys_of_the_loop(chance)
    good: bool | None = True
    if way == "callbacks":
        given = chance.sample(CALLBACKS, chance.randint(0, 3))
        if not chance.randint(0, 1):
            pool = chance.choice([WRONG_CALLBACKS, BAD_CALLBACKS])
            given.insert(chance.randint(0, len(given)), chance.choice(pool))
            good = False
        form = chance.choice(["[{}]"] * 5 + ["({},)", "{{{}}}", "iter([{}])", "{}"])
        if form == "{}" and len(given) != 1:
            form = "[{}]"
        joined = ", ".join(given)
        if form != "[{}]":
            good = None
        text = form.format(joined) if joined else "[]"
        validation = chance.choice(["", ", validation=0.3"])
        early = chance.choice(["", "", ", early_stopping=1"])
        stops = early or any("EarlyStopping(1)" in word for word in given)
        if stops and not validation:
            good = False if form == "[{}]" else None
        lines = [
            "class Seen(ng.Callback):",
            "    def on_start(self, view): self.rows = [view.step, view.steps, view.kept_at]",
            "    def on_step(self, view): self.rows += [view.step, view.batch_loss, view.seconds]",
            "    def on_look(self, view): self.rows.append(dict(view.row))",
            "    def on_end(self, view): self.rows.append(view.finished)",
            "class Stops(ng.Callback):",
            "    def on_step(self, view): view.stop()",
            f"more = dict(monitor_every=1{validation}{early})",
            "spec = ng.FitSpec(steps=4, batch_size=8, device='cpu', **more)",
            f"fit = ng.fit(model, guide, data, spec, progress=False, callbacks={text})",
        ]
        return Program("loop", lines, good, writes=True)
    options = {"n_components": "2", "steps": "2", "decoder": "ng.specs.MLPSpec(width=4, depth=1)"}
    options |= {"encoder": "ng.specs.MLPSpec(width=4, depth=1)", "random_state": "0"}
    for name in chance.sample(sorted(ESTIMATOR), chance.choice([1, 1, 2, 3])):
        right, wrong = ESTIMATOR[name]
        is_right = not wrong or chance.randint(0, 1)
        options[name] = chance.choice(right if is_right else wrong)
        good = agreed(good, bool(is_right))
    if {"layout", "missing", "likelihood"} & {*options} and good:
        good = None
    x = chance.choice(ROWS)
    if x != "rows":
        good = agreed(good, None)
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    lines = [
        "rows = np.random.default_rng(0).normal(size=(24, 6))",
        f"vae = ng.NGVAE({arguments})",
        f"vae.fit({x})",
    ]
    uses = [
        "",
        "vae.transform(rows)",
        "vae.inverse_transform(vae.transform(rows))",
        "vae.score(rows)",
    ]
    uses += [
        "vae.sample(3)",
        "vae.get_feature_names_out()",
        "repr(vae)",
    ]
    uses += [
        "vae.impute(rows)",
        "vae.inverse_transform(np.zeros((2, 9)))",
        "vae.transform(rows[0])",
    ]
    use = chance.choice(uses)
    if use:
        lines.append(use)
        good = agreed(good, None)
    return Program("loop", lines, good)


def _keys_of_the_loop(chance: random.Random) -> Arranged:
    good: bool | None = True
    given: dict[str, str] = {}
    for key in chance.sample(sorted(LOOP), chance.choice([1, 2, 2, 3, 4])):
        right, wrong = LOOP[key]
        is_right = bool(chance.randint(0, 4))
        given[key] = chance.choice(right if is_right else wrong)
        good = agreed(good, is_right)
    if "weight_decay" in given and given.get("optimizer") != "'adamw'":
        good = False
    if "early_stopping" in given and "validation" not in given:
        good = False
    if given.get("elbo") or given.get("particles") or given.get("batch_size") == "1":
        good = agreed(good, None)
    settings = [f"fit.{key}={value}" for key, value in given.items()]
    case = line_case(chance, "loop", {IMAGES: b""}, settings, good)
    if "epochs" in given:
        if chance.randint(0, 3):
            at = case.words.index("fit.steps=2")
            del case.words[at - 1 : at + 1]
        elif case.oracle:
            case.oracle = line_case(chance, "", {IMAGES: b""}, [], False).oracle
    return case


KINDS: dict[str, Callable[[random.Random, Bench], Any]] = {
    "likelihoods": likelihood_case,
    "own": own_case,
    "loop": loop_case,
}
