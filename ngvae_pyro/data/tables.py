"""Tables: columns of numbers are vectors, and columns of text are classes."""

import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.data.formats import check_file, named_path, reading
from ngvae_pyro.data.forms import MISSING_HINT, check_observed
from ngvae_pyro.data.images import (
    ImageData,
    as_classes,
    class_numbers,
    image_tensor,
    of_covariate,
)
from ngvae_pyro.errors import Notice, UserError, nearest, one_line
from ngvae_pyro.extras import needed

TABLES = (".csv", ".tsv", ".parquet")


class Columns(NamedTuple):
    """What the columns of a table are.

    Attributes:
        values: The vectors (N, D), float64.
        names: Their D names, or none where the table has no names but numbers.
        factors: (N, F), or None.
        factor_names: The F names.
        covariates: Values (N,) of the covariates by name.
    """

    values: np.ndarray
    names: tuple[str, ...]
    factors: Tensor | None
    factor_names: tuple[str, ...]
    covariates: dict[str, np.ndarray]


def load_table(
    path: str | Path,
    factors: Sequence[str] = (),
    layout: str | None = None,
    covariates: Sequence[str] = (),
    missing: bool = False,
) -> ImageData:
    """Read the vectors of a ``.csv``, ``.tsv`` or ``.parquet`` file.

    The first line of a text file holds the names of the columns. A first column without a name, in
    which pandas writes its index, is left out. Columns of text become factors, as classes (numbers
    from 0 in alphabetical order). A :class:`ngvae_pyro.errors.Notice` names both.

    Args:
        path: The file.
        factors: Names of columns that are factors, and no part of the vectors.
        layout: ``sequences`` if the columns are the places of one curve, as of a spectrum.
        covariates: Names of columns that are covariates, and no part of the vectors; C(name) if
            their numbers are classes.
        missing: Whether cells of numbers may be empty, as for :class:`ngvae_pyro.ImageData`.

    Raises:
        UserError: For anything that does not fit this description, and for missing values that are
            not allowed.
    """
    path = Path(named_path(path))
    check_file(path, "a table")
    with reading(path, f"{path.suffix} file"):
        table = _parquet(path) if path.suffix == ".parquet" else _text(path)
    found = columns_of(table, str(path), factors, covariates, missing)
    if len(table) < 2:
        raise UserError(f"{path}: expected at least 2 rows, got {len(table)}")
    images, form = image_tensor(found.values, str(path), layout=layout, missing=missing)
    form = replace(form, columns=found.names)
    return ImageData.stored(
        path.stem, images, found.factors, found.factor_names, form, found.covariates
    )


def _parquet(path: Path) -> Any:
    with needed("tables"):
        import pandas
    with needed("parquet"):
        import pyarrow  # noqa: F401, which pandas uses
    return pandas.read_parquet(path, engine="pyarrow")


def _text(path: Path) -> Any:
    """A table of separated text, with the names of its columns as they stand."""
    with needed("tables"):
        import pandas
    tabs = path.suffix == ".tsv"
    options = {"sep": "\t" if tabs else ",", "encoding": "utf-8-sig", "index_col": False}
    # As text, because pandas renames columns that have no name, or one that was there before.
    head = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
    names = [name.strip() for name in head.iloc[0]]
    numbers = [number for name in names if (number := _number(name)) is not None]
    if len(numbers) == len(names):
        # As wavelengths are; a row of data hardly is.
        steps = np.diff(numbers)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise UserError(
                f"{path}: expected names of columns in the first line, got {', '.join(names[:5])}"
            )
        warnings.warn(
            f"{path}: the numbers of the first line are names: {', '.join(names[:5])}",
            Notice,
            stacklevel=2,
        )
    # The names of an index, which has none, and of columns that are there twice are found below.
    places = [str(i) for i in range(len(names))]
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            table = pandas.read_csv(path, header=0, names=places, low_memory=False, **options)
        except pandas.errors.ParserWarning as error:
            # Pandas would cut the rows.
            raise UserError(
                f"{path}: expected {len(names)} values in each row, as in the first line, got more"
            ) from error
    table.columns = names
    if names[0] == "" and len(names) > 1:
        warnings.warn(
            f"{path}: not used: the first column, which has no name", Notice, stacklevel=2
        )
        return table.iloc[:, 1:]
    if len(names) == 1 and (other := next((c for c in "\t;," if c in names[0]), None)):
        expected = "tabs" if tabs else "commas"
        raise UserError(f"{path}: expected columns between {expected}, got {other!r}: {names[0]}")
    return table


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def is_table(data: Any) -> bool:
    """Whether something is a table of pandas, which then has been imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def columns_of(
    table: Any,
    where: str,
    factors: Sequence[str] = (),
    covariates: Sequence[str] = (),
    missing: bool = False,
) -> Columns:
    """The vectors, factors and covariates of a table of pandas.

    Args:
        table: The table. Columns of numbers and of bool are those of the vectors; columns of text
            become factors, and a :class:`ngvae_pyro.errors.Notice` names them.
        where: What it is, for messages.
        factors: Names of columns that are factors.
        covariates: Names of columns that are covariates, or C(name).
        missing: Whether values of the other columns of numbers may be missing.

    Raises:
        UserError: For missing values that are not allowed, and a column of nothing else, for
            columns that are neither numbers nor text, for names that are missing or there twice,
            and if no column of numbers is left.
    """
    names = [one_line(name) for name in table.columns]
    if "" in names:
        raise UserError(
            f"{where}: expected a name of each column, got none of column {names.index('')}"
        )
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"{where}: expected no column name twice, got {name!r} {times} times")
    known = {name: table.iloc[:, i] for i, name in enumerate(names)}
    given = covariate_columns(known, where, covariates)
    for name in given:
        if name in factors:
            raise UserError(f"{where}: expected {name!r} as a factor or a covariate, got both")
        del known[name]
    as_factors = factor_columns(known, where, factors)
    left = {
        name: column_of(column, f"{where}: column {name!r}", missing)
        for name, column in known.items()
        if name not in as_factors
    }
    text = {name: values for name, values in left.items() if values.dtype.kind == "U"}
    vectors = [values for name, values in left.items() if name not in text]
    if not vectors:
        kind = "of numbers that is no factor" if as_factors else "of numbers"
        raise UserError(f"{where}: expected a column {kind}, got {', '.join(names[:10]) or 'none'}")
    if text:
        warnings.warn(
            f"{where}: text, so classes, and no part of the vectors: {', '.join(list(text)[:10])}",
            Notice,
            stacklevel=2,
        )
        as_factors |= {name: class_numbers(values) for name, values in text.items()}
    own = tuple(name for name in left if name not in text)
    stacked_vectors = np.stack(vectors, 1)
    check_observed(stacked_vectors, where, own)
    labelled = all(isinstance(label, str) for label in table.columns)
    return Columns(
        stacked_vectors,
        own if labelled else (),
        stacked(as_factors),
        tuple(as_factors),
        given,
    )


def covariate_columns(known: Any, where: str, covariates: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that were named as covariates: text for classes, and numbers.

    Args:
        known: The columns, a mapping or a table. Categories of a table are classes.
        where: What they are of, for messages.
        covariates: The names, or C(name) for numbers that are classes.

    Raises:
        UserError: For a name that is not there, and for missing values.
    """
    # A single name is a string, which would otherwise be split into letters.
    covariates = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    found = {}
    for declared in covariates:
        name, classes = of_covariate(declared, known, where)
        values = column_of(known[name], f"{where}: column {name!r}")
        classes = classes or hasattr(known[name], "cat")
        found[name] = as_classes(values) if classes else values
    return found


def factor_columns(known: Any, where: str, factors: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that were named as factors, as numbers.

    Args:
        known: The columns, a mapping or a table.
        where: What they are of, for messages.
        factors: The names.

    Raises:
        UserError: For a name that is not there, and for missing values.
    """
    # A single name is a string, which would otherwise be split into letters.
    factors = (factors,) if isinstance(factors, str) else tuple(factors)
    found = {}
    for name in factors:
        if name not in known:
            raise UserError(f"{where}: factors: found no column {name!r}" + nearest(name, known))
        values = column_of(known[name], f"{where}: column {name!r}")
        found[name] = class_numbers(values) if values.dtype.kind == "U" else values
    return found


def stacked(factors: Mapping[str, np.ndarray]) -> Tensor | None:
    """Columns (N,) as factors (N, F); None if there are none."""
    return torch.from_numpy(np.stack(list(factors.values()), 1)) if factors else None


def column_of(column: Any, where: str, missing: bool | None = None) -> np.ndarray:
    """A column of a table as float64 or, if it is text or categories, as text.

    Args:
        column: The column.
        where: What it is, for messages.
        missing: Whether numbers may be missing, which are NaN then; None where none ever may.

    Raises:
        UserError: For missing values that are not allowed, for infinity, and for any other type.
    """
    numbers = column.dtype.kind in "biuf"
    if (absent := int(column.isna().sum())) and not (missing and numbers):
        hint = f"; {MISSING_HINT}" if numbers and missing is False else ""
        raise UserError(
            f"{where}: expected a value in each row, got NaN or none in {absent} of "
            f"{len(column)}{hint}"
        )
    if numbers:
        values: np.ndarray = column.to_numpy(np.float64, na_value=np.nan)
        if infinite := int(np.isinf(values).sum()):
            raise UserError(f"{where}: expected finite numbers, got inf in {infinite} rows")
        return values
    if column.dtype.kind == "O":
        objects = column.astype(object).to_numpy()
        if all(isinstance(value, str) for value in objects):
            return objects.astype(str)
        if hasattr(column, "cat"):
            return column_of(column.astype(column.cat.categories.dtype), where)
    raise UserError(f"{where}: expected numbers or text, got {column.dtype}")
