"""Which packages each part of this one needs, and the line for one that is not installed.

The distributions need torch, Pyro and numpy alone. What the rest needs is imported under
:func:`needed`, and nowhere else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from ngvae_pyro.errors import UserError


class Extra(NamedTuple):
    """An extra of ``setup.cfg``.

    Attributes:
        of: What needs it, with the verb.
        packages: What it brings: the name of the module that is imported, and that of the package.
    """

    of: str
    packages: dict[str, str]


EXTRAS = {
    "arviz": Extra(
        "ArviZ files need",
        {"arviz": "arviz", "h5netcdf": "h5netcdf", "h5py": "h5py", "xarray": "xarray"},
    ),
    "cli": Extra(
        "the command line and its reports need",
        {"jinja2": "jinja2", "rich": "rich", "tomli_w": "tomli-w", "typer": "typer"},
    ),
    "images": Extra("pictures and downloads need", {"PIL": "pillow", "torchvision": "torchvision"}),
    "metrics": Extra("metrics and NGVAE need", {"scipy": "scipy", "sklearn": "scikit-learn"}),
    "plots": Extra("figures need", {"matplotlib": "matplotlib"}),
    "tables": Extra("tables need", {"pandas": "pandas"}),
    "train": Extra(
        "models and their training need",
        {
            "pydantic": "pydantic",
            "rich": "rich",
            "safetensors": "safetensors",
            "scipy": "scipy",
        },
    ),
}


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Around the imports of what an extra brings.

    >>> with needed("plots"):
    ...     import matplotlib

    Raises:
        UserError: Where a package of the extra is not installed, or too old to have what is named.
    """
    try:
        yield
    except ImportError as error:
        # What such a package finds missing may be of another extra: arviz draws with matplotlib.
        module = str(error.name).partition(".")[0]
        for name in (extra, *EXTRAS):
            if module in EXTRAS[name].packages:
                raise UserError(_line(name, module)) from error
        raise


def check_installed(extra: str) -> None:
    """That what is imported late, because that takes time, will be there.

    Raises:
        UserError: Where a package of the extra is not installed.
    """
    for module in EXTRAS[extra].packages:
        if find_spec(module) is None:
            raise UserError(_line(extra, module))


def _line(extra: str, module: str) -> str:
    of, packages = EXTRAS[extra]
    return f"{of} {packages[module]}: pip install 'ngvae-pyro[{extra}]'"
