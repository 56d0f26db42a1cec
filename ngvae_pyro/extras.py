"""Which packages each part of this one needs, and the error for one that is not installed.

The distributions need only torch, Pyro and numpy. Packages that other parts need are imported
under :func:`needed` and nowhere else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from ngvae_pyro.errors import UserError


class Extra(NamedTuple):
    """An extra of ``setup.cfg``.

    Attributes:
        of: What needs it, with the verb, for the error message.
        packages: The names of its modules, each with the name of the package that provides it.
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
    "hdf5": Extra("HDF5 files need", {"h5py": "h5py"}),
    "images": Extra("pictures and downloads need", {"PIL": "pillow", "torchvision": "torchvision"}),
    "metrics": Extra("metrics and NGVAE need", {"scipy": "scipy", "sklearn": "scikit-learn"}),
    "mlflow": Extra("logs of MLflow need", {"mlflow": "mlflow-skinny"}),
    "parquet": Extra("parquet files need", {"pyarrow": "pyarrow"}),
    "plots": Extra("figures need", {"matplotlib": "matplotlib"}),
    "ray": Extra("a Ray cluster needs", {"ray": "ray"}),
    "tables": Extra("tables need", {"pandas": "pandas"}),
    "tensorboard": Extra("logs of TensorBoard need", {"tensorboard": "tensorboard"}),
    "train": Extra(
        "models and their training need",
        {
            "pydantic": "pydantic",
            "rich": "rich",
            "safetensors": "safetensors",
            "scipy": "scipy",
            "sklearn": "scikit-learn",
        },
    ),
}


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Wrap imports from an extra, so that a missing package gives a clear error.

    >>> with needed("plots"):
    ...     import matplotlib

    Raises:
        UserError: If a package of the extra is not installed, or too old to have what is imported.
    """
    try:
        yield
    except ImportError as error:
        # The missing module may belong to another extra: arviz, for example, imports matplotlib.
        module = str(error.name).partition(".")[0]
        for name in (extra, *EXTRAS):
            if module in EXTRAS[name].packages:
                raise UserError(_line(name, module)) from error
        raise


def check_installed(extra: str) -> None:
    """Check that packages which are imported late, because that takes time, are installed.

    Raises:
        UserError: If a package of the extra is not installed.
    """
    for module in EXTRAS[extra].packages:
        if find_spec(module) is None:
            raise UserError(_line(extra, module))


def _line(extra: str, module: str) -> str:
    of, packages = EXTRAS[extra]
    return f"{of} {packages[module]}: pip install 'ngvae-pyro[{extra}]'"
