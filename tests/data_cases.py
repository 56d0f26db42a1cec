"""Data of every kind, right and wrong: tables, HDF5, cells, layouts, covariates, gaps, streams.

A case is a file with some mistakes in it, or none, and a command line with options that suit it or
do not; or lines of Python. Where it is plain what has to become of a case, an oracle says so: a
mistake that is taken is a failure, and so is a good file that is refused. Else it has to end in
success or in one line, as all cases.
"""

import csv
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from call_cases import Names, called, within
from folder_cases import Arranged, Outcome
from input_cases import GOOD, IMAGES, Bench, Result, npy, npz, once, small_words, snapshot

# What is looked at once more after a training.
THEN = [[], [], ["inspect", "run"], ["evaluate", "run", "--device", "cpu"]]
THEN += [["score", "run", "--device", "cpu", "--size", "4"], ["train", "--resume", "run"]]


def awaited(good: bool | None) -> Callable[[Outcome], str] | None:
    """The oracle of a case that has to succeed, or must not; None if it may do either."""

    def oracle(found: Outcome) -> str:
        if good and found.code == 2:
            return "refused, and there is nothing wrong with it"
        return "a mistake was taken" if good is False and found.code == 0 else ""

    return None if good is None else oracle


def line_case(
    chance: random.Random,
    kind: str,
    files: dict[str, bytes],
    settings: list[str],
    good: bool | None,
    *,
    model: str = "normal_gamma",
    guide: str = "relaxed",
    factors: bool = False,
) -> Arranged:
    """A training on the first of some files, and a look at what it has left.

    With ``factors`` it is not evaluated: a few held-out rows do not have all of their classes.
    """
    data = next(iter(files))
    words = [data if word == IMAGES else word for word in small_words(model, guide)]
    words += [word for setting in settings for word in ("--set", setting)]
    steps: list[Any] = [
        ("mine", name, content, f"{len(content)} bytes: {content[:200]!r}")
        for name, content in files.items()
        if name != IMAGES
    ]
    then = chance.choice([then for then in THEN if not (factors and "evaluate" in then)])
    return Arranged(kind, once(words), "none", steps, awaited(good), then)


@dataclass
class Program:
    """Lines of Python that have to succeed (``good``), or must not, or may do either (None)."""

    kind: str
    lines: list[str]
    good: bool | None = None
    # Whether the lines write files themselves.
    writes: bool = False

    def __str__(self) -> str:
        return f"{self.kind}, Python, good: {self.good}:\n    " + "\n    ".join(self.lines)

    def run(self, bench: Bench) -> Result:
        folder = bench.emptied()
        names = Names(bench, folder)
        before = snapshot(folder)
        with within(folder):
            outcome, why = called(lambda: exec("\n".join(self.lines), names), [], {}, [])
        refused = outcome == "UserError"
        if not why and refused and not self.writes and snapshot(folder) != before:
            why = "refused, and something was written"
        if not why and self.good is not None and refused is self.good:
            why = "refused, and nothing is wrong" if refused else "a mistake was taken"
        return Result("failure" if why else "exit 2" if refused else "success", why)


def agreed(*found: bool | None) -> bool | None:
    """Whether a case is good of which these are: not if one is not, and unknown if one is."""
    return False if False in found else None if None in found else True


def toml_list(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


# Tables --------------------------------------------------------------------------------------


NAMES = ["a", "b", "c", "dose", "batch", "a b", "A", "x|y", "<b>", "é", "$x$", "C(a)", "a.b", "#"]
# Each with what it does to rows of cells, and whether it is a mistake.
EMPTY = ["", "NA", "nan", "NaN", "null", " "]


def _columns(chance: random.Random, rows: int) -> dict[str, list[str]]:
    """Columns of cells by name, at least one of them of numbers."""
    numbers = np.random.default_rng(chance.randint(0, 9))
    made: dict[str, Callable[[], list[str]]] = {
        "float": lambda: [f"{x:.4f}" for x in numbers.normal(size=rows)],
        "int": lambda: [str(x) for x in numbers.integers(0, 9, rows)],
        "bool": lambda: [str(x) for x in numbers.random(rows) < 0.5],
        "large": lambda: [f"{x:.3e}" for x in 1e20 * numbers.normal(size=rows)],
        "constant": lambda: ["3"] * rows,
        "text": lambda: [chance.choice(["one", "two", "three"]) for _ in range(rows)],
        "odd text": lambda: [chance.choice(["|", "<b>", "é", "a,b", 'q"']) for _ in range(rows)],
        "single": lambda: [f"cell {i}" for i in range(rows)],
    }
    names = chance.sample(NAMES, chance.randint(2, 6))
    kinds = ["float", "int", *chance.choices(sorted(made), k=len(names) - 2)]
    return {name: made[kind]() for name, kind in zip(names, kinds, strict=True)}


def _written(table: list[list[str]], separator: str, end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(table)
    return text.getvalue().encode()


def _spoilt(chance: random.Random, way: str, table: list[list[str]]) -> None:
    """Make a mistake in a table; its second column is of whole numbers."""
    row = chance.randrange(1, len(table))
    if way in ("empty", "text empty"):
        column = chance.choice([0, 1]) if way == "empty" else len(table[0]) - 1
        table[row][column] = chance.choice(EMPTY[: 5 if way == "empty" else 1])
    elif way == "word":
        table[row][1] = chance.choice(["x", "1,5", "-", "3 4", "2020-01-01"])
    elif way == "inf":
        table[row][0] = chance.choice(["inf", "-inf", "1e999"])
    elif way == "twice":
        table[0][1] = table[0][0]
    elif way == "no name":
        table[0][1] = chance.choice(["", " "])
    elif way == "long":
        table[row].append("7")
    elif way == "short":
        table[row].pop()
    elif way == "blank":
        table.insert(row, [])
    elif way == "column empty":
        for cells in table[1:]:
            cells[0] = ""
    elif way == "row empty":
        table[row][:] = [""] * len(table[row])


# Whether each is a mistake, without and with data.missing; None where that depends.
SPOILT: dict[str, tuple[bool | None, bool | None]] = {
    "empty": (False, True),
    "text empty": (None, None),
    "word": (None, None),
    "inf": (False, False),
    "twice": (False, False),
    "no name": (False, False),
    "long": (False, False),
    "short": (None, None),
    "blank": (True, True),
    "column empty": (False, False),
    "row empty": (None, None),
}


def _named(chance: random.Random, known: list[str]) -> tuple[list[str], bool | None]:
    """Some names of columns, and whether they may be named."""
    names = chance.sample(known[2:], min(len(known) - 2, chance.randint(0, 2)))
    if not chance.randint(0, 9):
        return [*names, chance.choice(["nowhere", "A ", "", "index", "C(nowhere)"])], False
    if not chance.randint(0, 19):
        return known, False
    return names, True


def table_case(chance: random.Random, bench: Bench) -> Arranged:
    """A table with a mistake or two, or none, and columns that are declared."""
    rows = chance.choice([24] * 12 + [2, 1, 0])
    columns = _columns(chance, rows)
    table = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    missing = not chance.randint(0, 2)
    good: bool | None = False if rows < 2 else None if rows < 24 else True
    ways = chance.sample(sorted(SPOILT), chance.choice([0, 0, 0, 1, 1, 2])) if rows == 24 else []
    for way in ways:
        _spoilt(chance, way, table)
    if ways:
        good = agreed(*(SPOILT[way][missing] for way in ways))
        # Two mistakes may lie on each other.
        good = None if good is False and len(ways) > 1 else good
    kind = chance.choice(["csv", "tsv"])
    end = chance.choice(["\n", "\n", "\r\n"])
    content = _written(table, "\t" if kind == "tsv" else ",", end)
    look = chance.choice([""] * 24 + ["bom", "latin", "nul", "other", "end", "utf-16"])
    if look == "bom":
        content = b"\xef\xbb\xbf" + content
    elif look:
        good = None
        if look == "latin":
            content = content.decode().encode("latin-1", "replace")
        elif look == "utf-16":
            content = content.decode().encode("utf-16")
        elif look == "other":
            content = _written(table, chance.choice(";\t, "))
        elif look == "nul":
            content = content.replace(b"1", b"\0", 1)
        else:
            content = content[: chance.randrange(len(content))]
    settings = ["data.missing=true"] if missing else []
    if "C(a)" in columns or "" in columns:
        # Which name is meant is a question of its own.
        good = None
    for key in chance.choice([[], ["factors"], ["covariates"], ["factors", "covariates"]]):
        names, may = _named(chance, list(columns))
        settings += [f"data.{key}={toml_list(names)}"] if names else []
        # A declared column may have no gap, and one is not declared twice.
        good = agreed(good, may) if not ways or may is False else None
        if key == "covariates" and any(f'"{n}"' in s for s in settings[:-1] for n in names):
            good = False if good is not None else None
        if key == "covariates" and any(n in columns for n in names) and good:
            # A class that the training images do not have, or a number that does not vary.
            good = None
    option = chance.choice([""] * 12 + ["layout=sequences", "layout=volumes", "stream=true"])
    if option:
        settings.append(f"data.{option}")
        may = {"layout=sequences": None}.get(option, False)
        good = agreed(good, may)
    if not chance.randint(0, 9):
        settings.append(f"data.size={chance.choice([0, 1, 2, 10, 24, 25, 10**9])}")
        good = None
    if "large" in str(columns):
        good = None
    return line_case(chance, "table", {f"x.{kind}": content}, settings, good, factors=True)


# HDF5 and cells ------------------------------------------------------------------------------


def _hdf5(write: Callable[[Any], None]) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        write(opened)
    return file.getvalue()


def hdf5_case(chance: random.Random, bench: Bench) -> Arranged:
    """An HDF5 file whose parts are of all types, shapes and links."""
    good: bool | None = True
    key = chance.choice(["imgs", "x", "images"])
    way = chance.choice(
        ["good"] * 14
        + ["float", "none", "two", "group", "external", "outside", "virtual", "soft", "text"]
        + ["compound", "complex", "scalar", "null", "fill", "one", "nan", "half", "vectors", "enum"]
    )

    def write(file: Any) -> None:
        images: Any = GOOD
        options: dict[str, Any] = {}
        if way == "float":
            images = GOOD / 255
        elif way == "half":
            images = (GOOD / 255).astype("f2")
        elif way == "nan":
            images = np.where(GOOD > 250, np.nan, GOOD / 255)
        elif way == "vectors":
            images = GOOD[:, 0].astype(float)
        elif way == "one":
            images = GOOD[:1]
        elif way == "scalar":
            images = 3
        elif way == "text":
            images = [b"a"] * 24
        elif way == "complex":
            images = GOOD * 1j
        elif way == "compound":
            images = np.zeros(24, [("a", "u1"), ("b", "f4")])
        elif way == "enum":
            images, options = GOOD % 2, {"dtype": h5py.enum_dtype({"a": 0, "b": 1}, "u1")}
        if chance.randint(0, 1) and np.ndim(images) > 1:
            options |= {"compression": "gzip", "chunks": (5, *np.shape(images)[1:])}
        if way == "none":
            file["picture"] = GOOD
        elif way == "null":
            file[key] = h5py.Empty("f4")
        elif way == "group":
            file.create_group(key)["x"] = GOOD
        elif way == "external":
            file[key] = h5py.ExternalLink("other.h5", "/x")
        elif way == "soft":
            file[key] = h5py.SoftLink("/nowhere")
        elif way == "outside":
            file.create_dataset(key, (24, 8, 8), "u1", external=[("raw.bin", 0, 24 * 64)])
        elif way == "virtual":
            layout = h5py.VirtualLayout((24, 28, 28), "u1")
            layout[:] = h5py.VirtualSource("other.h5", "x", (24, 28, 28))
            file.create_virtual_dataset(key, layout)
        elif way == "fill":
            file.create_dataset(key, (24, 8, 8), "u1", chunks=True)
        else:
            file.create_dataset(key, data=images, **options)
        if way == "two":
            file["x" if key != "x" else "imgs"] = GOOD

    if way in ("none", "two", "group", "external", "outside", "virtual", "soft", "text") or way in (
        "compound",
        "complex",
        "scalar",
        "null",
        "one",
        "nan",
    ):
        good = False
    elif way in ("fill", "enum"):
        good = None
    source, named = chance.choice(
        [("factors", "factor_names"), ("latents_values", "latents_names")]
    )
    factors: Any = chance.choice([None, "good", "text"] * 4 + ["short", "nan", "deep", "group"])
    names: Any = chance.choice([None, "good"] * 5 + ["short", "numbers", "twice"])

    def annotate(file: Any) -> None:
        made = {
            "good": lambda: np.arange(48.0).reshape(24, 2),
            "text": lambda: np.array([[b"a", b"b"]] * 24),
            "short": lambda: np.zeros((20, 2)),
            "nan": lambda: np.full((24, 2), np.nan),
            "deep": lambda: np.zeros((24, 2, 2)),
        }
        if factors == "group":
            file.create_group(source)
        elif factors:
            file[source] = made[factors]()
        listed = {"good": ["p", "q"], "short": ["p"], "numbers": [1, 2], "twice": ["p", "p"]}
        if names:
            file[named] = listed[names]

    def both(file: Any) -> None:
        write(file)
        annotate(file)

    settings, option = [], chance.choice(["", "", "stream", "missing", "layout", "covariates"])
    if factors in ("short", "nan", "deep", "group") or names in ("short", "numbers", "twice"):
        good = agreed(good, False if factors else None)
    elif names or factors == "text":
        good = agreed(good, None)
    if option == "covariates":
        name = chance.choice(["factors", "p", "q", "factor_0", "nowhere", "C(p)", "C()", "x", key])
        settings.append(f"data.covariates={toml_list([name])}")
        good = False if name == "nowhere" else agreed(good, None)
    elif option == "layout":
        layout = chance.choice(["sequences", "volumes", "images"])
        settings.append(f"data.layout={layout}")
        good = False if layout == "images" else agreed(good, None)
    elif option:
        settings.append(f"data.{option}=true")
        good = None if way == "nan" else agreed(good, None)
    files = {f"x.{chance.choice(['h5', 'hdf5'])}": _hdf5(both)}
    if chance.randint(0, 1):
        files["other.h5"] = _hdf5(lambda file: file.create_dataset("x", data=GOOD))
    return line_case(chance, "HDF5 file", files, settings, good, factors=True)


def _matrix(chance: random.Random, file: Any, way: str, values: np.ndarray) -> None:
    """X, dense or sparse, with something wrong where ``way`` says so."""
    form = chance.choice(["dense", "csr_matrix", "csc_matrix"])
    if form == "dense" or way in ("shape of X", "text X", "NaN in X", "no X"):
        if way == "no X":
            return
        dense: Any = values
        if way == "shape of X":
            dense = chance.choice([values[:, 0], values[..., None], values[:1], values[:, :0]])
        elif way == "text X":
            dense = values.astype("S4")
        elif way == "NaN in X":
            dense = np.where(values > 3, np.nan, values)
        file["X"] = dense
        return
    by_row = values if form == "csr_matrix" else values.T
    group = file.create_group("X")
    group.attrs["encoding-type"] = form
    entries = [np.flatnonzero(row) for row in by_row]
    data = np.concatenate([row[at] for row, at in zip(by_row, entries, strict=True)])
    indices = np.concatenate(entries)
    indptr = np.cumsum([0, *map(len, entries)])
    shape: Any = values.shape
    if way == "sparse":
        part = chance.choice(["indices", "indptr", "data", "shape", "gone", "encoding", "type"])
        if part == "indices":
            indices[chance.randrange(len(indices))] = chance.choice([-1, 10**6, 24])
        elif part == "indptr":
            indptr[chance.randrange(len(indptr))] = chance.choice([-1, 10**6, 0])
        elif part == "data":
            data = data[:-1]
        elif part == "shape":
            shape = chance.choice([(24,), (24, 7), (7, 24), (-1, 6), (24, 6, 1), 3, (10**9, 10**9)])
        elif part == "encoding":
            group.attrs["encoding-type"] = chance.choice(["coo_matrix", "", 3, b"csr_matrix"])
        elif part == "type":
            indices = indices.astype(chance.choice(["f8", "S3"]))
        if part == "gone":
            group.attrs["shape"] = shape
            for name, array in (("data", data), ("indices", indices), ("indptr", indptr)):
                if chance.randint(0, 2):
                    group[name] = array
            return
    group.attrs["shape"] = chance.choice([shape, [str(shape)]]) if way == "sparse" else shape
    group["data"], group["indices"], group["indptr"] = data, indices, indptr


def _annotation(chance: random.Random, group: Any, way: str) -> None:
    """The columns of obs."""
    group.attrs["_index"] = "_index"
    group["_index"] = [f"cell {i}" for i in range(24)]
    group["dose"] = np.arange(24.0)
    group["numbers"] = np.arange(24) % 3
    kind = group.create_group("kind")
    kind.attrs["encoding-type"] = "categorical"
    kind["codes"] = np.arange(24, dtype="i1") % 2
    kind["categories"] = ["one", "two"]
    nullable = group.create_group("maybe")
    nullable.attrs["encoding-type"] = "nullable-integer"
    nullable["values"], nullable["mask"] = np.arange(24), np.zeros(24, bool)
    order: Any = ["dose", "numbers", "kind", "maybe"]
    if way == "codes":
        kind["codes"][3] = chance.choice([-1, 2, 100, -5])
    elif way == "short codes":
        del kind["codes"]
        kind["codes"] = chance.choice([[0, 1], [], [[0, 1]] * 12, [0.5] * 24, ["a"] * 24])
    elif way == "categories":
        del kind["categories"]
        if chance.randint(0, 2):
            kind["categories"] = chance.choice([[], ["one"], 3, [["a"], ["b"]], [1.5, np.nan]])
    elif way == "mask":
        del nullable["mask"]
        if chance.randint(0, 2):
            nullable["mask"] = chance.choice([[True], [True] * 24, ["a"] * 24, 3])
    elif way == "order":
        order = chance.choice([["dose", "nowhere"], [], "dose", 3, ["_index"], [1, 2]])
    elif way == "short column":
        del group["dose"]
        group["dose"] = chance.choice([np.arange(7.0), 3.0, np.zeros((24, 2)), np.full(24, np.nan)])
    elif way == "encoding of a column":
        kind.attrs["encoding-type"] = chance.choice(["", "array", "nullable-boolean", "x", 3])
    if way != "no order":
        group.attrs["column-order"] = order


CELL_WAYS = ["codes", "short codes", "categories", "mask", "order", "short column", "no order"]
CELL_WAYS += [
    "encoding of a column",
    "shape of X",
    "text X",
    "NaN in X",
    "no X",
    "sparse",
    "sparse",
]
CELL_WAYS += ["no obs", "names", "obs", "sparse"]


def cell_case(chance: random.Random, bench: Bench) -> Arranged:
    """An .h5ad file with a mistake somewhere, or none."""
    way = chance.choice(["good"] * 4 + CELL_WAYS)
    values = np.random.default_rng(chance.randint(0, 9)).poisson(2.0, (24, 6)).astype("f4")

    def write(file: Any) -> None:
        _matrix(chance, file, way, values)
        if way == "obs":
            file["obs"] = np.arange(24)
        elif way != "no obs":
            _annotation(chance, file.create_group("obs"), way)
        var = file.create_group("var")
        var.attrs["_index"] = "gene"
        names: Any = [f"gene {i}" for i in range(6)]
        if way == "names":
            names = chance.choice([names[:4], list(range(6)), ["a"] * 6, [""] * 6, [], 3, None])
        if names is None:
            del var.attrs["_index"]
        else:
            var["gene"] = names

    declared = ["dose", "numbers", "kind", "maybe", "C(numbers)", "nowhere", "_index"]
    factors, covariates = (
        chance.sample(declared[: chance.choice([4, 4, 7])], chance.randint(0, 2)) for _ in range(2)
    )
    settings = [f"data.factors={toml_list(factors)}"] if factors else []
    settings += [f"data.covariates={toml_list(covariates)}"] if covariates else []
    good = {"good": True}.get(way)
    if way in ("shape of X", "text X", "no X", "no obs", "NaN in X", "no order"):
        good = False
    plain = {name.removeprefix("C(").removesuffix(")") for name in (*factors, *covariates)}
    if plain & {"nowhere", "_index"} or any(name.startswith("C(") for name in factors):
        good = False
    elif covariates or factors:
        good = agreed(good, None)
    family = chance.choice(["", "", "", "negative_binomial", "poisson", "bernoulli"])
    if family:
        settings.append(f"model.likelihood.family={family}")
        good = False if family == "bernoulli" else agreed(good, None)
    option = chance.choice([""] * 12 + ["missing=true", "stream=true", "layout=sequences"])
    if option:
        settings.append(f"data.{option}")
        good = False if option != "missing=true" else None
    return line_case(chance, ".h5ad file", {"x.h5ad": _hdf5(write)}, settings, good, factors=True)


# Layouts -------------------------------------------------------------------------------------


AXES = [(24, 12), (24, 28, 28), (24, 3, 12), (24, 8, 8, 3), (24, 4, 8, 8), (24, 1, 4, 8, 8)]
AXES += [(24, 4, 8, 8, 2), (24, 12), (24, 1), (24, 1, 1), (24, 2, 3, 3)]
ODD_AXES = [(24,), (24, 1, 1, 4, 8, 8), (24, 0), (2, 9), (24, 3, 0, 8), ()]
KINDS_OF_NETWORK = ["mlp", "conv", "resnet_v2", "residual_conv", "conv1d", "conv3d"]


def layout_case(chance: random.Random, bench: Bench) -> Arranged:
    """An array of some axes, a layout, and networks for it or for others."""
    shape = chance.choice([*AXES, *AXES, *AXES, *ODD_AXES])
    values = np.random.default_rng(chance.randint(0, 9)).random(shape)
    dtype = chance.choice(["f4", "f8", "u1", "i4", "u2", "?"])
    array = (values * (1 if dtype[0] == "f" else 2 if dtype == "?" else 200)).astype(dtype)
    axes = len(shape)
    fitting = {2: ["", "sequences"], 3: ["", "sequences"], 4: ["", "volumes"], 5: ["", "volumes"]}
    layout = chance.choice(fitting.get(axes, [""]) * 6 + ["sequences", "volumes", "images"])
    good: bool | None = None
    if (
        layout == "images"
        or axes in (0, 1, 6)
        or 0 in shape
        or (layout == "sequences" and axes not in (2, 3))
        or (layout == "volumes" and axes not in (4, 5))
    ):
        good = False
    settings = [f"data.layout={layout}"] if layout else []
    for part in ("model.decoder", "guide.encoder"):
        kind = chance.choice([None] * 15 + KINDS_OF_NETWORK)
        if kind in ("conv1d", "conv3d", "residual_conv", "conv", "resnet_v2"):
            small = {"conv1d": "channels=4", "conv3d": "channels=4", "conv": "channels=2"}
            small |= {"residual_conv": "channels=4", "resnet_v2": "channels=2"}
            # Those of the small words are of perceptrons.
            settings += [f"{part}={{kind='{kind}', {small[kind].replace('=', ' = ')}}}"]
            one_row = layout == "sequences" or axes == 2
            deep = layout == "volumes" or axes == 5
            if (kind == "conv1d" and not one_row) or (kind == "conv3d" and not deep):
                good = False if shape[1:] != (1, 1) else None
        elif kind:
            settings.append(f"{part}={{kind = '{kind}', width = 4, depth = 1}}")
    option = chance.choice([""] * 12 + ["stream=true", "missing=true", "factors=['a']"])
    settings += [f"data.{option}"] if option else []
    form = chance.choice(["npy", "npy", "npz", "h5"])
    if form == "npy":
        file = io.BytesIO()
        np.save(file, np.asfortranarray(array) if not chance.randint(0, 4) else array)
        content = file.getvalue()
        if not chance.randint(0, 9):
            content, good = content[: chance.randrange(len(content))], False
    elif form == "npz":
        content = npz({chance.choice(["imgs", "x", "images"]): array})
    else:
        content = _hdf5(lambda file: file.create_dataset("x", data=array))
    return line_case(chance, "layout", {f"x.{form}": content}, settings, good)


# Covariates ----------------------------------------------------------------------------------


COLUMNS = ["np.arange(24.0)", "np.arange(24) % 3", "np.array(['a', 'b'] * 12)", "torch.arange(24)"]
COLUMNS += ["np.arange(24) % 2 > 0", "['a', 'b'] * 12", "list(range(24))"]
WRONG_COLUMNS = ["np.arange(7.0)", "np.zeros((24, 2))", "np.full(24, np.nan)", "None", "3", "'ab'"]
WRONG_COLUMNS += ["np.array([None] * 24)", "np.full(24, np.inf)", "np.array(['a'])", "np.zeros(0)"]
WRONG_COLUMNS += ["np.array([{}] * 24)", "object()", "[[1, 2]] * 24", "np.arange(24) * 1j"]
# Whether these are mistakes depends on what they are taken for.
OPEN_COLUMNS = ["np.zeros(24)", "np.array(['a'] * 24)", "np.array([1, 'a'] * 12, dtype=object)"]
OPEN_COLUMNS += [
    "np.array(list(map(str, range(24))))",
    "np.arange(24) * 1e300",
    "[b'a', b'b'] * 12",
]
OPEN_COLUMNS += ["np.arange('2020-01-01', '2020-01-25', dtype='M8[D]')", "(i for i in range(24))"]
OPEN_COLUMNS += ["[None, 1.0] * 12", "torch.arange(24).requires_grad_(False)", "range(24)"]
VALUES = ["'a'", "0", "1.0", "['a'] * 4", "np.zeros(4)", "np.array(['a', 'b', 'a', 'b'])", "True"]
VALUES += ["None", "'nowhere'", "np.nan", "np.zeros(3)", "np.zeros((4, 1))", "[]", "float('inf')"]
VALUES += ["np.zeros((4, 2))", "{}", "'a' * 5000", "torch.zeros(4)", "b'a'", "10**400", "1e300"]
SMALL_PAIR = [
    "small = {'width': 4, 'depth': 1}",
    "def trained(data):",
    "    model = ng.load_model('normal_gamma', data, latent_size=2, decoder=small)",
    "    guide = ng.load_guide('relaxed', model, encoder=small)",
    "    spec = ng.FitSpec(steps=2, batch_size=8, device='cpu')",
    "    return ng.fit(model, guide, data, spec, progress=False)",
]
ROWS_OF_SIX = "rows = np.random.default_rng(0).normal(size=(24, 6))"


def covariate_case(chance: random.Random, bench: Bench) -> Any:
    """Covariates in a file, or in Python, and what is decoded with them."""
    if chance.randint(0, 1):
        return _covariates_of_a_file(chance)
    name = chance.choice(["batch", "batch", "batch", "a b", "", "C(batch)", "C(", "x\\ny", "é"])
    pool = chance.choice([COLUMNS, COLUMNS, COLUMNS, WRONG_COLUMNS, OPEN_COLUMNS])
    column = chance.choice(pool)
    good: bool | None = {id(COLUMNS): True, id(WRONG_COLUMNS): False}.get(id(pool))
    if name in ("", "C(", "C(batch)", "x\\ny"):
        good = None if good else good
    given = f"{{'{name}': {column}}}"
    if not chance.randint(0, 9):
        given = chance.choice(
            ["None", "[]", "'batch'", "{3: np.arange(24)}", "{'a': {}}", "3", "()"]
        )
        good = {"None": True}.get(given)
    lines = [*SMALL_PAIR, ROWS_OF_SIX]
    made = chance.choice(
        [
            f"data = ng.from_numpy(rows, covariates={given})",
            f"data = ng.ImageData('a', rows, covariates={given})",
        ]
    )
    lines.append(made)
    use = chance.choice(["", "fit", "decode", "decode", "decode", "other", "sample", "subset"])
    if use:
        lines.append("fit = trained(data)")
    if use == "decode":
        values = ", ".join(
            f"'{chance.choice([name, name, name, 'nowhere'])}': {chance.choice(VALUES)}"
            for _ in range(chance.choice([1, 1, 2]))
        )
        values = chance.choice([f"{{{values}}}"] * 6 + ["None", "{}", "3", "['a']", "data"])
        lines.append(f"fit.decode(np.zeros((4, 2)), {values})")
        good = agreed(good, None)
        if "nowhere" in values:
            good = False
    elif use == "other":
        other = chance.choice(
            [
                "rows",
                "ng.from_numpy(rows)",
                f"ng.from_numpy(rows[:4], covariates={{'{name}': {chance.choice(VALUES)}}})",
                f"ng.from_numpy(rows, covariates={{'other': {chance.choice(COLUMNS)}}})",
                "data",
                "rows[:, :3]",
            ]
        )
        does = chance.choice(["encode", "reconstruct", "latents", "to_arviz", "impute"])
        lines.append(f"fit.{does}({other})")
        good = agreed(good, None)
    elif use == "sample":
        lines.append("fit.sample(3)")
    elif use == "subset":
        lines.append("fit.encode(data.subset([0, 5]))")
    return Program("covariates", lines, good)


def _covariates_of_a_file(chance: random.Random) -> Arranged:
    numbers = np.random.default_rng(chance.randint(0, 9))
    columns: dict[str, Any] = {
        "dose": numbers.normal(size=24),
        "batch": np.array(["first", "second"] * 12),
        "well": np.arange(24) % 4,
        "flat": np.full(24, 3.0),
        "own": np.array([f"cell {i}" for i in range(24)]),
        "nan": np.where(np.arange(24) == 3, np.nan, 1.0),
        "short": np.zeros(20),
        "deep": np.zeros((24, 2)),
    }
    # Of those that every part of the data has.
    sound, wrong = ["dose", "batch", "C(well)", "well"], ["nan", "nowhere", "C(nowhere)", ""]
    form = chance.choice(["csv", "npz", "h5", "sprites", "images"])
    if form in ("npz", "h5"):
        wrong += ["short", "deep"]
    names = chance.sample(sound, chance.randint(0, 2))
    if {"well", "C(well)"} <= {*names}:
        names.pop()
    good: bool | None = True
    if chance.randint(0, 1):
        name = chance.choice([*wrong, "flat", "own", "batch", "dose"])
        good = False if name in wrong else None
        names.append(name)
    files = {}
    if form == "csv":
        table = {k: v for k, v in columns.items() if np.shape(v) == (24,)}
        values = {f"x{i}": numbers.normal(size=24) for i in range(4)}
        cells = [[str(x) for x in column] for column in (values | table).values()]
        head = [*values, *table]
        # A column with a gap that is not declared is refused as well.
        if "nan" not in names:
            at = head.index("nan")
            del head[at], cells[at]
        files["x.csv"] = _written([head, *map(list, zip(*cells, strict=True))], ",")
    elif form == "npz":
        # Keys that are not named are not read.
        files["x.npz"] = npz({"imgs": GOOD, **columns})
    elif form == "h5":

        def write(file: Any) -> None:
            file["x"] = GOOD
            for name, column in columns.items():
                file[name] = column.astype("S") if column.dtype.kind == "U" else column

        files["x.h5"] = _hdf5(write)
        if "batch" in names or "own" in names:
            # Bytes of a fixed length are text of HDF5 as well.
            good = agreed(good, None)
    else:
        known = ["x", "y", "C(y)", "size", "C(size)", "nowhere", "label"]
        if form == "images":
            known = ["nowhere", "label", "C(x)"]
        names = chance.sample(known, chance.randint(0, 2))
        good = None
        if form == "images" and names:
            good = False
        files = {"sprites": b""} if form == "sprites" else {IMAGES: b""}
    settings = [f"data.covariates={toml_list(names)}"] if names else []
    if not chance.randint(0, 9):
        settings = [f"data.covariates={chance.choice(['3', 'dose', '[[]]', '{}', '[1]', 'true'])}"]
        good = None
    if form == "sprites":
        settings.append("data.size=24")
        found = line_case(chance, "covariates", files, settings, good, factors=True)
        found.steps = []
        return found
    return line_case(chance, "covariates", files, settings, good, factors=True)


# Missing values ------------------------------------------------------------------------------


GAPS = ["rows[3, 1] = np.nan", "rows[::2, 1] = np.nan", "rows[np.random.default_rng(1).random("]
GAPS[2] += "rows.shape) < 0.3] = np.nan"
BAD_GAPS = ["rows[3] = np.nan", "rows[:, 1] = np.nan", "rows[3, 1] = np.inf", "rows[:] = np.nan"]
SHAPED = {
    "vectors": "rows = np.random.default_rng(0).normal(size=(24, 6))",
    "images": "rows = np.random.default_rng(0).random((24, 8, 8))",
    "sequences": "rows = np.random.default_rng(0).normal(size=(24, 2, 9))",
    "counts": "rows = np.random.default_rng(0).poisson(2.0, (24, 6)).astype(float)",
    "float32": "rows = np.random.default_rng(0).normal(size=(24, 6)).astype('f4')",
}


def missing_case(chance: random.Random, bench: Bench) -> Any:
    """Values that are missing, declared or not, in a file or in Python."""
    kind = chance.choice(sorted(SHAPED))
    gap = chance.choice([*GAPS, *GAPS, *BAD_GAPS, ""])
    declared = bool(chance.randint(0, 2))
    good: bool | None = declared or not gap
    if gap in BAD_GAPS and not (kind in ("images", "sequences") and gap == BAD_GAPS[1]):
        good = False
    if gap in BAD_GAPS[:2] and kind in ("images", "sequences"):
        # A row of all pixels is one; a column of them is all of a channel, or a line.
        good = False if gap == BAD_GAPS[0] else None
    names: dict[str, Any] = {"np": np}
    exec("\n".join([SHAPED[kind], gap]), names)
    if chance.randint(0, 1):
        form = chance.choice(["npz", "npy", "h5", "csv"])
        rows = names["rows"]
        settings = ["data.missing=true"] if declared else []
        if kind == "sequences":
            settings.append("data.layout=sequences")
        if form == "csv":
            rows = rows.reshape(24, -1)
            settings = settings[:1] if declared else []
            cells = [["" if np.isnan(x) else str(x) for x in row] for row in rows]
            content = _written([[f"c{i}" for i in range(rows.shape[1])], *cells], ",")
            good = None if kind in ("images", "sequences") and gap in BAD_GAPS else good
        elif form == "npz":
            content = npz({"imgs": rows})
        elif form == "h5":
            content = _hdf5(lambda file: file.create_dataset("x", data=rows))
        else:
            file = io.BytesIO()
            np.save(file, rows)
            content = file.getvalue()
        family = chance.choice(["", "", "student_t", "bernoulli", "categorical", "poisson"])
        if kind == "counts" and chance.randint(0, 1):
            family = chance.choice(["negative_binomial", "poisson"])
        if family:
            settings.append(f"model.likelihood.family={family}")
            good = agreed(good, None)
        more = chance.choice(["", "", "", "data.stream=true", "fit.validation=0.2"])
        if more:
            settings.append(more)
            good = False if "stream" in more and declared else agreed(good, None)
        return line_case(chance, "missing", {f"x.{form}": content}, settings, good)
    lines = [*SMALL_PAIR, SHAPED[kind], *([gap] if gap else [])]
    layout = ", layout='sequences'" if kind == "sequences" else ""
    made = f"ng.ImageData('a', rows{layout}, missing={declared})"
    if kind == "images" and not chance.randint(0, 3):
        made = f"ng.from_numpy(rows, missing={declared})"
    lines.append(f"data = {made}")
    use = chance.choice(
        ["", "impute", "impute", "evaluate", "other", "estimator", "arviz", "given"]
    )
    if use in ("impute", "evaluate", "other", "arviz"):
        lines.append("fit = trained(data)")
    if use == "impute":
        what = [
            "data",
            "rows",
            "data",
            "rows",
            "rows[:1]",
            "rows[0]",
            "rows[:, :3]",
            "rows * np.nan",
        ]
        what += ["torch.from_numpy(rows)", "None", "np.full_like(rows, np.inf)", "rows[:0]", "'x'"]
        taken = chance.choice(what)
        lines.append(f"fit.impute({taken})")
        # Of images in memory the range is what it is.
        good = agreed(good, True if taken == "data" else None)
    elif use == "evaluate":
        lines.append("ng.evaluate(fit, data)")
    elif use == "arviz":
        lines.append("fit.to_arviz(data, observations=2, draws_per_chain=4)")
        good = agreed(good, None)
    elif use == "other":
        lines += ["rows[1, 0] = np.nan", "fit.encode(rows)"]
        good = agreed(good, None)
    elif use == "estimator":
        lines = [SHAPED[kind], *([gap] if gap else [])]
        option = chance.choice([declared, declared, declared, "1", "'yes'", "None"])
        lines += [
            f"vae = ng.NGVAE(2, steps=2, missing={option}, decoder=ng.specs.MLPSpec(width=4), "
            f"random_state=0{layout})",
            f"vae.fit(rows).{chance.choice(['impute(rows)', 'transform(rows)', 'score(rows)'])}",
        ]
        good = agreed(good, None) if option is declared else None
    elif use == "given":
        option = chance.choice(["1", "'yes'", "None", "np.True_", "[True]"])
        lines[-1] = f"data = ng.ImageData('a', rows{layout}, missing={option})"
        good = None
    return Program("missing", lines, good)


# Streams -------------------------------------------------------------------------------------


ITEMS = [
    "torch.rand(1, 8, 8)",
    "(torch.rand(1, 8, 8), i % 3)",
    "np.ones((8, 8)) * i",
    "torch.rand(6)",
]
WRONG_ITEMS = ["None", "'x'", "torch.rand(1, 8, 8 + i)", "(torch.rand(1, 8, 8), 1, 2)", "{}", "()"]
WRONG_ITEMS += ["torch.full((1, 8, 8), float('nan'))", "object()"]
WRONG_ITEMS += [
    "torch.rand(8, 8) * 1j",
    "(torch.rand(1, 8, 8), 'a')",
    "torch.rand(0)",
    "i",
    "(3, 4)",
]


def stream_case(chance: random.Random, bench: Bench) -> Any:
    """Data that stay on the disk: files, data sets and maps, and where their copy lies."""
    if chance.randint(0, 1):
        return _streamed_file(chance)
    lines = list(SMALL_PAIR)
    good: bool | None = True
    source = chance.choice(
        ["items", "items", "items", "iterable", "memmap", "array", "odd", "path"]
    )
    if source in ("items", "iterable"):
        item = chance.choice([*ITEMS, *ITEMS, *WRONG_ITEMS])
        good = True if item in ITEMS else None
        count = chance.choice(["24", "24", "24", "0", "1", "2", "10**12"])
        good = agreed(good, True if count == "24" else None)
        if source == "items":
            lines += [
                "class Items(torch.utils.data.Dataset):",
                f"    def __len__(self): return {count}",
                f"    def __getitem__(self, i): return {item}",
            ]
        else:
            rows = count if count in ("24", "0", "1", "2") else "24"
            lines += [
                "class Items(torch.utils.data.IterableDataset):",
                f"    def __iter__(self): return ({item} for i in range({rows}))",
            ]
        what = "Items()"
        if not chance.randint(0, 3):
            what = "torch.utils.data.DataLoader(Items(), batch_size=4)"
    elif source == "memmap":
        shape = chance.choice(["(24, 8, 8)", "(24, 6)", "(24,)", "(24, 1, 4, 8, 8)", "(1, 8, 8)"])
        dtype = chance.choice(["'u1'", "'f4'", "'f8'", "'>f4'", "'i2'", "'c8'", "'S3'", "bool"])
        order = chance.choice(["", "", ", order='F'"])
        lines.append(f"x = np.memmap('x.bin', {dtype}, 'w+', shape={shape}{order})")
        what = chance.choice(["x", "x", "x[::2]", "x[::-1]", "x[:, :4]", "x.T", "np.asarray(x)"])
        good = None
    elif source == "array":
        lines.append("x = np.random.default_rng(0).random((24, 8, 8))")
        what = chance.choice(["x", "x.tolist()", "torch.from_numpy(x)", "x * np.nan", "x[:0]"])
        good = True if what == "x" else None
    elif source == "path":
        lines.append("Path('x.txt').write_text('x')")
        what = chance.choice(
            ["'images.npz'", "'x.txt'", "Path('nowhere.npy')", "''", "'sprites'", "'.'"]
        )
        good = what == "'images.npz'"
    else:
        what = chance.choice(
            ["None", "3", "'x'", "{}", "object()", "data", "[1, 2]", "print", "b''"]
        )
        good = None
    options = []
    if chance.randint(0, 1):
        folder = chance.choice(
            ["'.'", "'.'", "'nowhere'", "'images.npz'", "''", "3", "None", "True"]
        )
        options.append(f"folder={folder}")
        good = agreed(good, True if folder in ("'.'", "None") else None)
    if not chance.randint(0, 3):
        options.append(
            chance.choice(["layout='sequences'", "layout='x'", "name=3", "name='a\\nb'"])
        )
        good = False if options[-1] in ("layout='x'", "name=3") else None
    lines.append(f"streamed = ng.stream({', '.join([what, *options])})")
    use = chance.choice(["", "trained(streamed)", "trained(streamed)", "streamed.subset([0, 1])"])
    use = chance.choice([use, use, "trained(streamed).encode(streamed)", "streamed.split(0.1, 0)"])
    lines += [use] if use else []
    return Program("streams", lines, good, writes=source in ("memmap", "path"))


def _streamed_file(chance: random.Random) -> Arranged:
    form = chance.choice(["npy", "npy", "npz", "h5", "idx", "csv", "h5ad", "sprites"])
    dtype = chance.choice(["u1", "f4", "f8", "i2", "?", "c8", "S2", "f2"])
    shape = chance.choice(
        [(24, 28, 28), (24, 8, 8, 3), (24, 6), (24, 1, 4, 8, 8), (1, 8, 8), (24,)]
    )
    array = (np.random.default_rng(0).random(shape) * (1 if dtype[0] == "f" else 200)).astype(dtype)
    if dtype[0] == "f" and not chance.randint(0, 3):
        array.flat[chance.randrange(array.size)] = chance.choice([np.nan, np.inf, -2.0, 7.0])
    settings = ["data.stream=true"]
    good: bool | None = (
        False if form in ("csv", "h5ad", "sprites") or dtype in ("c8", "S2") else None
    )
    if len(shape) == 1 or shape[0] == 1:
        good = False
    file = io.BytesIO()
    if form in ("npy", "sprites", "h5ad"):
        np.save(file, np.asfortranarray(array) if not chance.randint(0, 4) else array)
        content = file.getvalue()
        ways = ["cut", "more", "lying", "version"]
        way = chance.choice(["", "", *ways])
        if way == "cut":
            content, good = content[: chance.randrange(len(content))], False
        elif way == "more":
            content, good = content + b"x" * 9, good if good is False else None
        elif way == "lying":
            head = chance.choice([(10**9, 8, 8), (24, -8, 8), (24, 8), (2**62, 2**62), ()])
            content, good = npy("|u1", head, bytes(200)), None if head == (24, 8) else False
        elif way == "version":
            content, good = content[:6] + bytes([9, 9]) + content[8:], False
    elif form == "npz":
        content = npz({"imgs": array}, bool(chance.randint(0, 1)))
    elif form == "h5":
        content = _hdf5(lambda opened: opened.create_dataset("x", data=array))
    elif form == "idx":
        content, good = (
            bytes([0, 0, 8, 3, 0, 0, 0, 24, 0, 0, 0, 28, 0, 0, 0, 28]) + GOOD.tobytes(),
            True,
        )
        if chance.randint(0, 1):
            content, good = content[: chance.randrange(len(content))], False
    else:
        content = _written([["a", "b"], *([str(i), str(i % 5)] for i in range(24))], ",")
    name = {"idx": "x-idx3-ubyte", "sprites": "x.npy"}.get(form, f"x.{form}")
    more = chance.choice(["", "", "data.size=10", "fit.validation=0.3", "data.layout=sequences"])
    if more:
        settings.append(more)
        good = agreed(good, None)
    found = line_case(chance, "streams", {name: content}, settings, good)
    if form == "sprites":
        found.words = ["sprites" if word == name else word for word in found.words]
        found.words += ["--set", "data.size=24"] if "data.size=10" not in found.words else []
    tmp = chance.choice([None, None, None, "/no/such/folder", "/proc", ""])
    if tmp is not None:
        found.env = {"TMPDIR": tmp}
        found.oracle = None if good else found.oracle
    return found


KINDS: dict[str, Callable[[random.Random, Bench], Any]] = {
    "tables": table_case,
    "hdf5": hdf5_case,
    "cells": cell_case,
    "layouts": layout_case,
    "covariates": covariate_case,
    "missing": missing_case,
    "streams": stream_case,
}
