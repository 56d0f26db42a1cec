"""Inputs of all kinds for the command line, right and wrong, and what has to become of each.

Shared by ``tests/test_inputs.py`` and ``benchmarks/inputs.py``. A case is a command line and the
files that it finds; :class:`Bench` runs it through ``ngvae_pyro.cli.main`` in an empty folder and
says what came out: ``success``, ``exit 2`` with one line on stderr and nothing changed,
``diverged`` (exit 1 with the line on a non-finite loss), or ``failure``. The cases of
``folder_cases.py`` (run folders, links, locks, data, environments), ``call_cases.py`` (arrays and
calls in Python), ``data_cases.py`` (data of every kind) and ``code_cases.py`` (likelihoods, code of
somebody's own, the loop) run on the same bench, and are judged by rules of their own.

What is slow and beside the point is taken out while a case runs (:func:`lightened`): figures and
the file for ArviZ are not made, trainings end after two steps, sprites are 60 where all are asked
for, no process is started for a run, and the machine is said to have 256 MiB of memory, so that
what is legal but large is refused. ``whole`` cases run as they are, in a process of their own.
"""

import copy
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tomllib
import typing
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import annotated_types
import h5py
import numpy as np
import tomli_w
from hypothesis import strategies as st

from ngvae_pyro import cli, evaluation, machine, specs
from ngvae_pyro.data import rendering
from ngvae_pyro.errors import UserError
from ngvae_pyro.report import pages as report
from ngvae_pyro.runs import pool
from ngvae_pyro.runs import start as training
from ngvae_pyro.training.steps import NonFiniteLoss

IMAGES = "images.npz"
NETWORK = {"width": 4, "depth": 1}
SMALL = {
    "model": {"latent_size": 2, "decoder": NETWORK},
    "guide": {"encoder": NETWORK},
    "fit": {"steps": 2, "batch_size": 8, "device": "cpu", "workers": 0},
}
ROOM = 2**28
# Names of files that are left behind when something has gone wrong, and of those that may stay.
LEFT = re.compile(r"\.partial|\.part$|/?\.[^/]*\.old")
# What a training says of its last step, and where what was trained is kept whatever happens then.
TRAINED = re.compile(r"\s*step \d+/\d+ ")
GOES_ON = "ngvae train --resume"
LOCK = re.compile(r"\.lock$")
# Guides that fit each prior, the first of them for cases that are about something else.
FITTING = {
    "normal_gamma": ["relaxed", "mixture", "flat", "generalized", "score"],
    "gaussian": ["gaussian", "gaussian_mixture", "epanechnikov"],
    "poisson": ["poisson"],
    "ard": ["ard"],
}
PRIOR_OF = {guide: prior for prior, guides in FITTING.items() for guide in guides}


@dataclass
class Case:
    """A command line, the files that it finds, and which folder it may change.

    ``edits`` are files of a finished run that are put in place of its own.
    """

    kind: str
    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    edits: dict[str, bytes] = field(default_factory=dict)
    whole: bool = False
    env: dict[str, str] = field(default_factory=dict)

    def run(self, bench: "Bench") -> "Result":
        return bench.line(self)

    def __str__(self) -> str:
        files = {name: text[:300] for name, text in {**self.files, **self.edits}.items()}
        return f"{self.kind}: ngvae {self.words!r:.600} with {files}"


@dataclass
class Result:
    """What became of a case, and why it is a failure if it is one."""

    outcome: str
    why: str = ""
    error: str = ""


# Keys ----------------------------------------------------------------------------------------


MISSING = object()


def parts_of(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from parts_of(part)


def members(annotation: Any) -> list[type[specs.Spec]]:
    return [p for p in parts_of(annotation) if isinstance(p, type) and issubclass(p, specs.Spec)]


def tag(spec: type[specs.Spec]) -> dict[str, Any]:
    """What chooses a spec among those of its union."""
    fields = spec.model_fields
    return {k: fields[k].default for k in ("family", "kind") if k in fields and fields[k].default}


def bounds(field_info: Any) -> list[float]:
    """The bounds that a key declares anywhere in its type."""
    found = list(field_info.metadata)
    for part in parts_of(field_info.annotation):
        for extra in getattr(part, "__metadata__", ()):
            found += [extra, *getattr(extra, "metadata", ())]
    kinds = {annotated_types.Gt: "gt", annotated_types.Ge: "ge"}
    kinds |= {annotated_types.Lt: "lt", annotated_types.Le: "le"}
    return [getattr(m, kinds[type(m)]) for m in found if type(m) in kinds]


@dataclass(frozen=True)
class Key:
    """A key somewhere in a spec: the tables around it, and the bounds of its values."""

    context: Any
    path: tuple[Any, ...]
    bounds: tuple[float, ...]

    def holding(self, value: Any) -> dict[str, Any]:
        """The tables with this key set to a value, or without it."""
        values = copy.deepcopy(self.context)
        table = values
        for part in self.path[:-1]:
            table = table[part]
        if value is MISSING:
            table.pop(self.path[-1], None)
        else:
            table[self.path[-1]] = value
        return values


def keys(spec: type[specs.Spec], context: Any = None, path: tuple[Any, ...] = ()) -> Iterator[Key]:
    """Every key of a spec and of the specs in it, under each member of every union."""
    context = tag(spec) if context is None else context
    for name, info in spec.model_fields.items():
        yield Key(context, (*path, name), tuple(bounds(info)))
        is_array = typing.get_origin(info.annotation) is tuple
        for member in members(info.annotation):
            inner = copy.deepcopy(context)
            table = inner
            for part in path:
                table = table[part]
            own = tag(member)
            if member is specs.Move or is_array:
                own = {"kind": "birth", "at": 0.5, "steps": 1}
                table[name], below = [own], (*path, name, 0)
            else:
                table[name], below = own, (*path, name)
            yield from keys(member, inner, below)


def values_for(key: Key) -> list[Any]:
    """Nothing, every type, values around the bounds, and what is no number or too large for one."""
    found: list[Any] = [MISSING, True, "", "x", "<script>$x$", "a\nb", [], [1], ["x", {}], {}]
    found += [{"a": {"b": [1]}}, date(2020, 1, 1), [[[[]]]], "\x1b[2J", "0" * 5000, [0.5, 0.5]]
    found += [math.nan, math.inf, -math.inf, 10**30, -(10**30), 1e308, -1e308, 5e-324, 0, -1, 1]
    found += [2, 0.5, 1.5, 10**400, 16**5000, [1e-30, 1e30], [math.nan, 1.0]]
    for bound in key.bounds:
        found += [bound, bound - 1, bound + 1]
        found += [math.nextafter(bound, -math.inf), math.nextafter(bound, math.inf)]
    if len(key.bounds) > 1:
        low, high = min(key.bounds), max(key.bounds)
        whole = isinstance(low, int)
        middle = (max(low, 1 if whole else 1e-9) * high) ** 0.5
        found.append(round(middle) if whole else middle)
    # For the pairs: the corners of what they may hold.
    found += [[a, b] for a in set(key.bounds) for b in set(key.bounds)]
    return found


GUIDES: dict[str, type[specs.Spec]] = {
    tag(spec)["family"]: spec
    for spec in members(specs.SavedRun.model_fields["guide"].annotation)
    if "family" in tag(spec) and hasattr(spec, "model_fields") and "encoder" in spec.model_fields
}


def toml(values: Any) -> bytes:
    # Whole numbers that Python does not write out in decimal are written in hexadecimal.
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return tomli_w.dumps(values).encode("utf-8", "surrogatepass")
    finally:
        sys.set_int_max_str_digits(limit)


def once(words: Iterable[Any]) -> list[str]:
    """Words of which a later ``--set`` or option takes the place of an earlier one of its name."""
    kept: list[tuple[str, list[str]]] = []
    rest = iter(map(str, words))
    for word in rest:
        name = word
        group = [word]
        if word == "--set":
            group.append(next(rest))
            name = f"--set {group[1].partition('=')[0]}"
            kept = [(n, g) for n, g in kept if n != name and not n.startswith(f"{name}.")]
        elif word in REPLACED:
            group.append(next(rest))
            kept = [(n, g) for n, g in kept if n != name]
        kept.append((name, group))
    return [word for _, group in kept for word in group]


# Of what goes on, before a mistake that is found later.
NOTICES = re.compile(
    ": not used: |: text, so classes|the numbers of the first line are names|"
    "not say what (its|their) images were|is left there, because it is not of a run|"
    "trains without moves"
)
# Options that small words have, and a test may have again.
REPLACED = {"--steps", "--latents", "--jobs", "--out", "--data", "--device"}


def small_words(model: str, guide: str, out: str = "run") -> list[str]:
    words = ["train", model, guide, "--out", out, "--data", IMAGES]
    for part, table in SMALL.items():
        for name, value in table.items():
            if isinstance(value, dict):
                words += [w for k, v in value.items() for w in ("--set", f"{part}.{name}.{k}={v}")]
            else:
                words += ["--set", f"{part}.{name}={value}"]
    return words


def _small_but(key: Key, holding: dict[str, Any], *network: str) -> dict[str, Any]:
    """The tables of a case, with small networks where the case is not about the network."""
    if key.path[0] not in network:
        for name in network:
            holding.setdefault(name, NETWORK)
    return holding


def _of_model(key: Key, value: Any) -> Case:
    values = _small_but(key, key.holding(value), "decoder")
    if key.path[0] != "latent_size":
        values.setdefault("latent_size", 2)
    prior = values.get("prior", {})
    family = prior.get("family", "normal_gamma") if isinstance(prior, dict) else "normal_gamma"
    guide = FITTING.get(family, ["relaxed"])[0] if isinstance(family, str) else "relaxed"
    words = ["train", "m.toml", guide, "--out", "run", "--data", IMAGES, "--steps", "2"]
    words += ["--device", "cpu", "--set", "guide.encoder.width=4", "--set", "fit.batch_size=8"]
    return Case("model key, file", words, {"m.toml": toml(values)})


def _of_guide(key: Key, value: Any) -> Case:
    values = _small_but(key, key.holding(value), "encoder")
    prior = PRIOR_OF.get(str(key.context.get("family")), "normal_gamma")
    words = ["train", prior, "g.toml", "--out", "run", "--data", IMAGES, "--steps", "2"]
    words += ["--device", "cpu", "--latents", "2", "--set", "model.decoder.width=4"]
    words += ["--set", "model.decoder.depth=1", "--set", "fit.batch_size=8"]
    return Case("guide key, file", words, {"g.toml": toml(values)})


def _literal(value: Any) -> str:
    if value is MISSING:
        return ""
    return toml({"v": value}).decode("utf-8", "surrogatepass").partition("=")[2].strip()


def _of_option(part: str, key: Key, value: Any) -> Case:
    guide = key.context.get("family", "relaxed") if part == "guide" else "relaxed"
    prior = key.context.get("prior", {}).get("family") if part == "model" else PRIOR_OF[guide]
    prior = prior or "normal_gamma"
    if part == "model":
        guide = FITTING[prior][0]
    words = small_words(prior, guide)
    # Parents first, which choose the member of a union.
    for name, table in key.context.items():
        if isinstance(table, dict) and table:
            words += ["--set", f"{part}.{name}={_inline(table)}"]
    dotted = ".".join(map(str, key.path))
    words += ["--set", f"{part}.{dotted}={_literal(value)}"]
    return Case(f"{part} key, --set", once(words))


def _inline(table: Any) -> str:
    """A table as TOML in one line."""
    if isinstance(table, dict):
        return "{" + ", ".join(f"{k} = {_inline(v)}" for k, v in table.items()) + "}"
    if isinstance(table, list):
        return "[" + ", ".join(map(_inline, table)) + "]"
    return _literal(table)


def _of_saved(run: Path, key: Key, value: Any) -> Case:
    values = tomllib.loads((run / "config.toml").read_text())
    edited = specs.merge(values, key.context)
    table: Any = edited
    for part in key.path[:-1]:
        table = table[part]
    if value is MISSING:
        table.pop(key.path[-1], None)
    else:
        table[key.path[-1]] = value
    return Case("saved key, inspect", ["inspect", "run"], edits={"config.toml": toml(edited)})


def key_cases(run: Path, seed: int = 0) -> Iterator[Case]:
    """Cases without end, of the forms in turn: each key comes up again with another value."""
    chance = random.Random(seed)
    guide = [key for spec in GUIDES.values() for key in keys(spec)]
    of: dict[str, list[Key]] = {
        part: list(keys(spec))
        for part, spec in (
            *(("model", specs.ModelSpec), ("fit", specs.FitSpec)),
            *(("data", specs.DataSpec), ("saved", specs.SavedRun)),
        )
    }
    forms = [(partial(_of_option, part), of[part]) for part in ("model", "fit", "data")]
    forms += [(_of_model, of["model"]), (partial(_of_saved, run), of["saved"])]
    # Of which there are by far the most.
    forms += 2 * [(_of_guide, guide), (partial(_of_option, "guide"), guide)]
    turns = [_dealt(form, those, chance) for form, those in forms]
    while True:
        for cases in turns:
            yield next(cases)


def _dealt(form: Any, those: list[Key], chance: random.Random) -> Iterator[Case]:
    """Cases of one form, key by key; a key's values come up in any order, each once in a while."""
    decks: list[list[Any]] = [[] for _ in those]
    while True:
        order = list(range(len(those)))
        chance.shuffle(order)
        for i in order:
            if not decks[i]:
                decks[i] = values_for(those[i])
                chance.shuffle(decks[i])
            yield form(those[i], decks[i].pop())


# Bytes ---------------------------------------------------------------------------------------


@st.composite
def mangled(draw: Any, source: bytes) -> bytes:
    """Bytes with some cut out, put in, turned over, doubled, or the end gone."""
    content = bytearray(source)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        way = draw(st.sampled_from(["cut", "put", "flip", "end", "double"]))
        if way == "cut":
            del content[at : at + draw(st.integers(1, 20))]
        elif way == "put":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif way == "flip" and content:
            content[at] ^= draw(st.integers(1, 255))
        elif way == "end":
            del content[at:]
        elif content:
            content[at:at] = content[at : at + draw(st.integers(1, 40))]
    return bytes(content)


DEEP = {
    "deep.toml": b"a = " + b"[" * 20_000,
    "table.toml": b"[" + b".".join([b"a"] * 5_000) + b"]",
    "digits.toml": b"latent_size = " + b"9" * 10_000,
    "hex.toml": b"latent_size = 0x" + b"f" * 10_000,
    "date.toml": b"latent_size = 2020-13-45",
    "latin.toml": b'latent_size = "\xff"',
    "nul.toml": b"latent_size = 2\x00",
}


@st.composite
def toml_cases(draw: Any) -> Case:
    """A variant's file with its bytes mangled, or of a kind that upsets parsers."""
    part = draw(st.sampled_from(["model", "guide"]))
    values: dict[str, Any] = (
        {"latent_size": 2, "prior": {"price": 3.0}, "decoder": NETWORK}
        if part == "model"
        else {"sharpness": 20.0, "encoder": NETWORK, "schedule": {"z": {"initial": 3.0}}}
    )
    deep = st.sampled_from(sorted(DEEP.values()))
    content = draw(mangled(toml(values)) | deep | st.binary(max_size=40))
    names = ("x.toml", "relaxed") if part == "model" else ("normal_gamma", "x.toml")
    words = ["train", *names, "--out", "run", "--data", IMAGES, "--steps", "2"]
    words += ["--device", "cpu", "--set", "fit.batch_size=8"]
    return Case("toml bytes", words, {"x.toml": content})


# Images --------------------------------------------------------------------------------------


def npz(arrays: dict[str, Any], compressed: bool = True) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy(descr: str, shape: Any, content: bytes, fortran: bool = False) -> bytes:
    """A member of an .npz as anybody may write it."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there twice
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
    return file.getvalue()


class Executed:
    """What a pickle must never do here."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


# The smallest images that all networks take.
GOOD = np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8)


@cache
def bomb() -> bytes:
    """A sixth of a megabyte that inflates to a little more than two thirds of the memory."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("imgs.npy", "w") as member,
    ):
        member.write(npy("|u1", (172, 1024, 1024), b""))
        for _ in range(172):
            member.write(bytes(2**20))
    return file.getvalue()


@st.composite
def arrays(draw: Any) -> Any:
    """Arrays of right and wrong shapes, types, orders and values."""
    shape = draw(
        st.sampled_from([(24, 8, 8), (24, 8, 8, 1), (24, 3, 8, 8), (24, 8, 8, 3), (2, 8, 8)])
        | st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), max_size=6).map(tuple)
    )
    names = ["u1", "?", "f2", "<f4", ">f4", "f8", "i1", "<i4", "u2", "c8", "S3", "U2", "O", "M8[s]"]
    dtype = np.dtype(draw(st.sampled_from([*names[:6], *names])))
    values = np.random.default_rng(draw(st.integers(0, 9))).random(shape)
    if dtype.kind == "O":
        array = np.full(shape, None, dtype=object)
        array[...] = Executed()
    elif dtype.kind in "SUM":
        array = np.zeros(shape, dtype)
    else:
        scale = 1 if dtype.kind in "fc" else 255
        array = (values * draw(st.sampled_from([scale, 1, 100]))).astype(dtype)
    if dtype.kind == "f" and array.size and draw(st.booleans()):
        spoilt = [0.0, 1.0, math.nan, math.inf, -0.5]
        array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(spoilt))
    return np.asfortranarray(array) if draw(st.booleans()) else array


@cache
def hdf5() -> bytes:
    """An HDF5 file of images and factors, compressed."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.create_dataset("x", data=GOOD, compression="gzip")
        opened["factors"] = np.zeros((24, 2))
    return file.getvalue()


# A good table, of which cells are replaced by these.
ROWS = [["a", "b", "kind"], *([str(i), str(i / 7), "xy"[i % 2]] for i in range(24))]
CELLS = ["", "nan", "inf", "1e999", "x", "-0", '"', "\0", "a", ",", "\n", "\t", ";", "é", "9" * 400]
CELLS += ["2020-01-01", "True", " 1 ", "\udcff", "0x1f", "1_000", "\ufeff"]


@st.composite
def file_cases(draw: Any) -> Case:
    """HDF5 files and tables, whole and mangled, read as they are or with options."""
    kind = draw(st.sampled_from(["h5", "h5", "csv", "csv", "tsv", "h5ad", "parquet"]))
    if kind in ("csv", "tsv"):
        rows = [list(row) for row in ROWS]
        for _ in range(draw(st.integers(0, 3))):
            row = rows[draw(st.integers(0, 24))]
            row[draw(st.integers(0, 2))] = draw(st.sampled_from(CELLS))
        text = "\n".join(("," if kind == "csv" else "\t").join(row) for row in rows)
        content = text.encode("utf-8", "surrogateescape")
    else:
        content = hdf5()
    content = draw(st.just(content) | mangled(content))
    words = [w if w != IMAGES else f"x.{kind}" for w in small_words("normal_gamma", "relaxed")]
    option = draw(st.sampled_from(["", "", "data.factors=['b']", "data.layout=sequences"]))
    words += ["--set", option] if option else []
    return Case(f".{kind} file", words, {f"x.{kind}": content})


@st.composite
def image_cases(draw: Any) -> Case:
    """Files of images: whole, of any arrays, mangled, lying, hostile."""
    way = draw(
        st.sampled_from(["arrays", "arrays", "mangled", "header", "factors", "twice", "end", "idx"])
    )
    name = "x.npz"
    if way == "arrays":
        content = npz({"imgs": draw(arrays())}, draw(st.booleans()))
    elif way == "factors":
        content = npz({"imgs": GOOD, "latents_values": draw(arrays())})
    elif way == "mangled":
        content = draw(mangled(npz({"imgs": GOOD, "latents_values": np.zeros((24, 2))})))
    elif way == "end":
        content = npz({"imgs": GOOD}, draw(st.booleans()))
        content = content[: draw(st.integers(0, len(content)))]
    elif way == "twice":
        good = npy("|u1", GOOD.shape, GOOD.tobytes())
        other = draw(st.sampled_from([good, b"", good[:-5], npy("|O", (2,), b"cos\nsystem\n.")]))
        content = zipped(draw(st.permutations([("imgs.npy", good), ("imgs.npy", other)])))
    elif way == "header":
        large = st.sampled_from([2**31, 2**62, 10**17, 10**18, 0, 1, 24, 64])
        shape = draw(st.lists(large, max_size=5).map(tuple))
        descr = draw(st.sampled_from(["|u1", "<f8", "|O", "<U999999", "<V8", "|b1", ">f4", "|S0"]))
        content = zipped([("imgs.npy", npy(descr, shape, bytes(96), draw(st.booleans())))])
        content = draw(st.sampled_from([content] * 7 + [bomb()]))
    else:
        name = "x-images-idx3-ubyte"
        head = bytes([0, 0, 8, 3]) + struct.pack(">3I", *GOOD.shape)
        content = draw(mangled(head + GOOD.tobytes()) | mangled(head) | st.just(head[:9]))
    words = [w if w != IMAGES else name for w in small_words("normal_gamma", "relaxed")]
    return Case("IDX file" if way == "idx" else ".npz file", words, {name: content})


# Command lines -------------------------------------------------------------------------------


ODD = ["", " ", "\n", "\0", "\x1b[2J", "\udcff", "é\u202e", "a" * 300, "b/" * 2500, "--", "-", "-1"]
ODD += ["..", ".", "/", "~", IMAGES, f"{IMAGES}/x", "/dev/null", "/dev/null/x", "/proc/x", "[/red]"]
ODD += [
    "0",
    "1",
    "2",
    "1e3",
    "nan",
    "inf",
    "true",
    "１",
    str(10**30),
    "9" * 5000,
    "x.json",
    "$\\x$",
]
ODD += ["<script>", "cpu", "cuda", "cuda:99", "cuda:999999999999999999999", "gpu", "sprites"]
ODD += [
    "sprites:x",
    "sprites:q",
    "sprites:x=0.5..0.4",
    "sprites:x=..",
    "mnist",
    "no.npz",
    "=",
    "a=b",
]
ODD += ["fit.steps=1", "fit.steps", "fit.steps=[[[", "guide.sharpness=1", "a.b.c=1", "model=3"]
ODD += [
    "fit." + "a." * 2000 + "b=1",
    "fit.x=" + "[" * 5000,
    "fit.seed=" + "9" * 5000,
    "data.name=3",
]
ODD += ["model.prior=3", "gaussian+gaussian", "+", "a+b", "../../x+y", "run", "seed", "Train"]
OPTIONS = ["--out", "--data", "--latents", "--steps", "--seed", "--device", "--set", "--data-root"]
OPTIONS += ["--overwrite", "--size", "--fit-images", "--pairs", "--seeds", "--first-seed", "--jobs"]
OPTIONS += ["--help", "--version", "--ot", "-x", "--resume", "--out=", "--steps=x"]
_PAIR = ["--pairs", "gaussian+gaussian", "--jobs", "1"]
LINES = [
    small_words("normal_gamma", "relaxed"),
    small_words("gaussian", "gaussian"),
    [*small_words("gaussian", "beta_27", "run"), "--overwrite"],
    ["inspect", "run"],
    ["evaluate", "run", "--device", "cpu"],
    ["score", "run", "--device", "cpu", "--size", "4"],
    ["score", "run", "--device", "cpu", "--data", IMAGES, "--size", "4", "--out", "s.json"],
    ["compare", *small_words("", "", "c")[3:], *_PAIR],
    ["variants"],
    ["--version"],
]


@st.composite
def command_cases(draw: Any) -> Case:
    """A good command line with some of its words left out, put elsewhere, or replaced."""
    words = list(draw(st.sampled_from(LINES)))
    odd = st.sampled_from(ODD) | st.sampled_from(OPTIONS) | st.text(max_size=6)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(words)))
        way = draw(st.sampled_from(["drop", "replace", "insert", "swap"]))
        if way == "insert":
            words[at:at] = draw(st.lists(odd, min_size=1, max_size=2))
        elif way == "replace":
            words[at : at + 1] = [draw(odd)]
        elif way == "drop":
            del words[at : at + 1]
        elif words:
            other = draw(st.integers(0, len(words) - 1))
            at = min(at, len(words) - 1)
            words[at], words[other] = words[other], words[at]
    return Case("command line", words)


# Run folders of others -----------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of an array the first."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


WRONG: list[Any] = [MISSING, None, True, 3, -1, 10**30, 1e308, math.nan, math.inf, "x", "", [], {}]
WRONG += [[[]], {"a": 1}, ["x"], [1.0], "<script>", "[/red]\x1b[2J", 0.5, 16**5000]


RUN_FILES = ["metrics.json", "metrics.json", "history.json", "evaluation.json"]
RUN_FILES += ["weights.safetensors", "config.toml"]


@st.composite
def folder_cases(draw: Any, run: Path) -> Case:
    """A finished run, or comparison, with something in one of its files changed."""
    name = draw(st.sampled_from(RUN_FILES))
    source = (run / name).read_bytes()
    if name.endswith(".json") and draw(st.integers(0, 4)):
        values = json.loads(source)
        path = draw(st.sampled_from(list(places(values))))
        wrong = draw(st.sampled_from(WRONG))
        if path:
            table = values
            for part in path[:-1]:
                table = table[part]
            if wrong is MISSING:
                del table[path[-1]]
            else:
                table[path[-1]] = wrong
        else:
            values = None if wrong is MISSING else wrong
        sys.set_int_max_str_digits(0)
        content = json.dumps(values).encode()
        sys.set_int_max_str_digits(4300)
    elif name == "weights.safetensors":
        head = draw(st.sampled_from([2**63, 2**40, 10**8, 0, 1]))
        content = draw(mangled(source[:600] + source[600:]) | st.just(struct.pack("<Q", head)))
    else:
        deep = st.just(b"[" * 100_000) | st.just(b'{"rows":' * 5_000)
        content = draw(mangled(source) | deep | st.just(b"9" * 5_000))
    command = draw(st.sampled_from(["inspect", "inspect", "evaluate", "score", "compare"]))
    words = {
        "inspect": ["inspect", "run"],
        "evaluate": ["evaluate", "run", "--device", "cpu"],
        "score": ["score", "run", "--device", "cpu", "--size", "4"],
        "compare": ["compare", *small_words("", "", "c")[3:], *_PAIR],
    }[command]
    inside = "c/gaussian+gaussian/seed-0/" if command == "compare" else "run/"
    return Case("run folder, edited", words, edits={inside + name: content})


# The whole command ---------------------------------------------------------------------------


def whole_cases(count: int) -> list[Case]:
    """Cases that run as a user would run them, with all that a run folder has."""
    found = [
        Case("whole command", words)
        for words in (
            small_words("normal_gamma", "relaxed"),
            [],
            ["trian"],
            small_words("normal_gamma", "relaxd"),
            [*small_words("gaussian", "gaussian"), "--set", "fit.learning_rate=-1"],
            small_words("poisson", "poisson"),
            ["inspect", "run"],
            ["evaluate", "run"],
            ["score", "run", "--size", "4"],
            ["inspect", "nowhere"],
            once([*small_words("gaussian", "gaussian"), "--set", "fit.batch_size=1"]),
            once([*small_words("gaussian", "factor"), "--set", "model.decoder.width=100000"]),
            ["variants", "--no"],
            ["train", "a\nb", "relaxed", "--out", "run"],
            small_words("gaussian", "epanechnikov", "a\nb"),
            small_words("gaussian", "dip_ii", os.fsdecode(b"\xff")),
            ["compare", "--out", IMAGES, "--pairs", "gaussian+gaussian"],
            ["score", "run", "--out", "no/s.json"],
            small_words("gaussian", "gaussian", "a" * 300),
        )
    ]
    env: list[dict[str, str]] = [{"PYTHONIOENCODING": "latin-1"}, {"WORLD_SIZE": "2"}]
    env += [{"TMPDIR": "/no/such/folder", "HOME": "/no/such/home"}, {"COLUMNS": "1"}]
    found[2:2] = [
        Case("whole command", ["evaluate", "run"], env=env[0]),
        Case("whole command", ["inspect", "run"], env=env[1]),
        Case("whole command", small_words("gaussian", "gaussian"), env=env[2]),
    ]
    found += [
        Case("whole command", ["inspect", "run"], env=env[3]),
        Case("whole command", ["train", "normal_gamma"]),
        Case("whole command", ["inspect", "run"], edits={"run/metrics.json": b"[" * 100_000}),
        Case("whole command", ["inspect", "run"], edits={"run/weights.safetensors": b"\xff" * 99}),
        Case(
            "whole command",
            [w if w != IMAGES else "x.npz" for w in small_words("gaussian", "gaussian")],
            {"x.npz": npz({"imgs": np.array([Executed()], dtype=object)})},
        ),
        Case("whole command", ["train", "x.toml", "relaxed", "--out", "r"], {"x.toml": b"\xff"}),
    ]
    for case in found:
        case.whole = True
    return found[:count]


# Running -------------------------------------------------------------------------------------


class Inline:
    """A process pool without processes."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def submit(self, function: Any, *arguments: Any) -> Any:
        future: Any = Future()
        try:
            future.set_result(function(*arguments))
        except (UserError, NonFiniteLoss) as error:
            future.set_exception(error)
        return future

    def shutdown(self, **options: Any) -> None: ...


class Slow(BaseException):
    """A case that does not come to an end."""


# Seconds of the processor for one case; the slowest take about two.
PATIENCE = 60


@contextmanager
def impatient() -> Iterator[None]:
    """Raises :class:`Slow` where a case does not come to an end."""

    def enough(number: int, frame: Any) -> None:
        raise Slow(f"more than {PATIENCE} s")

    before = signal.signal(signal.SIGPROF, enough)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# Of a run, as they are drawn in full.
FIGURES = ["selection", "precisions", "variances", "covariance", "reconstructions", "traversals"]


def few_figures(folder: Path, *words: Any) -> None:
    """Files that look like a run's figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (folder / f"{name}.png").write_bytes(report.PNG + bytes(20))


@contextmanager
def lightened(steps: int = 2) -> Iterator[None]:
    """Without what is slow and beside the point; trainings end after so many steps."""
    fit, sprites = training.fit, rendering.sprites

    def two_steps(*words: Any, **options: Any) -> Any:
        def capped(word: Any) -> Any:
            if isinstance(word, specs.FitSpec):
                return word.model_copy(update={"steps": min(steps, word.steps)})
            return word

        return fit(*map(capped, words), **{k: capped(v) for k, v in options.items()})

    def few(n: int = 60, **options: Any) -> Any:
        return sprites(60 if n == evaluation.POINTS else n, **options)

    def fetched(*words: Any) -> Any:
        raise AssertionError("something was to be fetched")

    nothing: Any = lambda *words, **options: None  # noqa: E731
    with (
        mock.patch("ngvae_pyro.runs.start.fit", two_steps),
        mock.patch("ngvae_pyro.runs.counting.fit", two_steps),
        mock.patch("ngvae_pyro.data.sources.sprites", few),
        mock.patch("ngvae_pyro.data.formats._from_torchvision", fetched),
        mock.patch("ngvae_pyro.report.plots.save_all", few_figures),
        mock.patch("ngvae_pyro.report.comparison_plots.save_all", nothing),
        mock.patch("ngvae_pyro.evaluation.diagnostics.to_arviz", nothing),
        mock.patch("ngvae_pyro._arviz.to_netcdf", lambda posterior, path: path.touch()),
        mock.patch("ngvae_pyro.report.plots.scores", nothing),
        mock.patch.object(pool, "ProcessPoolExecutor", Inline),
        mock.patch.object(machine, "there", lambda device="cpu": ROOM),
    ):
        yield


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in a folder: names, and sums of the files' content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            is_file = path.is_file()
            found[name] = hashlib.md5(path.read_bytes()).hexdigest() if is_file else "folder"
    return found


class Bench:
    """Runs cases, each in a folder of its own.

    Args:
        folder: An empty folder to work in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.run_folder, self.compared = self.folder / "base" / "run", self.folder / "base" / "c"
        self.images = npz({"imgs": GOOD})
        # A run with an evaluation.json as well.
        self.inside = self.compared / "gaussian+gaussian" / "seed-0"
        # Made where the cases are run, so that a path that a run keeps leads to their files.
        base = self.folder / "case"
        base.mkdir()
        (base / IMAGES).write_bytes(self.images)
        with lightened():
            for words in (small_words("gaussian", "gaussian"), LINES[7], LINES[4]):
                code, _, error = self.main(base, words)
                assert code == 0, error
        base.rename(self.folder / "base")

    def main(
        self, folder: Path, words: list[str], encoding: str = "utf-8", gone: bool = False
    ) -> tuple[Any, str, str]:
        """Exit code, stdout and stderr of the command line in this process.

        Args:
            folder: The working folder, which is removed first where it is to be ``gone``.
            words: The command line.
            encoding: Of stdout and stderr.
            gone: Whether the working folder is no more.
        """
        # As those of a terminal are: the one cannot print every character, the other escapes.
        streams = [
            io.TextIOWrapper(io.BytesIO(), encoding, errors=errors, write_through=True)
            for errors in ("strict", "backslashreplace")
        ]
        before = Path.cwd()
        os.chdir(folder)
        if gone:
            folder.rmdir()
        try:
            with (
                warnings.catch_warnings(),
                mock.patch.object(sys, "argv", ["ngvae", *words]),
                redirect_stdout(streams[0]),
                redirect_stderr(streams[1]),
            ):
                warnings.resetwarnings()
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                try:
                    with impatient():
                        cli.main()
                    code: Any = "no exit"
                except SystemExit as end:
                    code = end.code
                except (Exception, Slow) as error:  # whatever it is, it is a finding
                    code = f"{type(error).__name__}: {error}"
        finally:
            os.chdir(before)
        return (code, *(s.buffer.getvalue().decode(encoding, "replace") for s in streams))  # type: ignore[attr-defined]

    def __call__(self, case: Any) -> Result:
        return case.run(self)

    def line(self, case: Case) -> Result:
        """What becomes of a command line."""
        folder = self.emptied()
        has_run = "run" in case.words[1:2] or any(n.startswith("run/") for n in case.edits)
        if has_run or case.kind.startswith("saved"):
            shutil.copytree(self.run_folder, folder / "run")
        if any(name.startswith("c/") for name in case.edits):
            shutil.copytree(self.compared, folder / "c")
        for name, content in case.files.items():
            (folder / name).write_bytes(content)
        for name, content in case.edits.items():
            name = f"run/{name}" if name == "config.toml" else name
            (folder / name).write_bytes(content)
        before = snapshot(folder)
        if case.whole:
            command = [sys.executable, "-m", "ngvae_pyro", *case.words]
            env = {**os.environ, **case.env}
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=300, env=env)
            code: Any = done.returncode
            error = done.stderr.decode("utf-8", "replace")
        else:
            with lightened():
                code, _, error = self.main(folder, case.words)
        return self.judge(case, code, error, before, snapshot(folder))

    def emptied(self) -> Path:
        """The folder of a case, with nothing but the images in it."""
        folder = self.folder / "case"
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / IMAGES).write_bytes(self.images)
        return folder

    def judge(
        self, case: Any, code: Any, error: str, before: dict[str, str], after: dict[str, str]
    ) -> Result:
        # A lock's file may stay, for whoever comes next; it holds nothing of anybody's.
        new_locks = {n for n in after if n not in before and LOCK.search(n)}
        changed = sorted(
            {n for n in {*before, *after} if before.get(n) != after.get(n)} - new_locks
        )
        tops = {name.partition("/")[0] for name in changed}
        partial = [n for n in after if n not in before and LEFT.search(n)]
        # A training that comes to its end without a terminal has said so in a line.
        lines = [
            line for line in error.splitlines() if not (TRAINED.match(line) or NOTICES.search(line))
        ]
        one = len(lines) == 1 and lines[0].startswith("ngvae: ") and lines[0].isprintable()
        outcome, why = "failure", ""
        if code == 0:
            outcome = "success"
            if "Traceback" in error:
                why = "a traceback"
        elif code == 2:
            outcome = "exit 2"
            if "ngvae" in "".join(lines[:1]) and not one:
                why = f"{len(lines)} lines on stderr"
            elif not one and case.words:
                why = "not one line on stderr"
            elif changed and not (GOES_ON in error and len(tops) == 1):
                why = f"changed {changed[:5]}"
        elif code == 1 and one and "non-finite loss" in lines[0]:
            outcome = "diverged"
        else:
            why = f"exit {code}"
        if not why and partial:
            why = f"left {partial[:5]}"
        # One folder, or the three files of a score.
        if not why and len(tops) > 1 and not all(name.startswith("s.") for name in tops):
            why = f"changed {sorted(tops)}"
        return Result("failure" if why else outcome, why, error[-2000:])
