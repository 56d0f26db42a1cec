"""The only module that depends on which generation of ArviZ is installed (0.23 or 1.x)."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ngvae_pyro import files
from ngvae_pyro.extras import needed

# How often the import of ArviZ is tried.
IMPORTS = 8


def _imported() -> Any:
    """ArviZ, in any number of processes at once.

    On the first import of a day 0.23 writes a notice's date to a temporary file that all processes
    of a user share, and renames it: of several that do so together all but one find it gone, and
    fail. The next time the notice is not due.
    """
    for _ in range(IMPORTS - 1):
        with suppress(FileNotFoundError):
            return import_module("arviz")
    return import_module("arviz")


with needed("arviz"), warnings.catch_warnings():
    # 0.23 announces its successor once a day; users of this package need not act on it.
    warnings.filterwarnings("ignore", "\\s*ArviZ is undergoing", FutureWarning)
    az = _imported()
    import h5netcdf  # noqa: F401, writes the files; here, so that a lack of it shows at once
    import h5py  # noqa: F401, for h5netcdf
    import xarray as xr

FIRST_GENERATION = az.__version__.startswith("0.")

# Above this Pareto k an importance-sampling estimate cannot be trusted (Vehtari et al., 2024).
GOOD_K = 0.7


def from_groups(
    groups: dict[str, dict[str, tuple[Sequence[str], Any]]],
    coords: dict[str, Any],
    attrs: dict[str, Any],
) -> Any:
    """Build the ArviZ object of either generation from its groups.

    ``az.from_dict`` takes the dimensions of an array by its name alone, and ``x`` is an image where
    it is observed or drawn, and a number where it is a log likelihood.

    Args:
        groups: For each group, the dimensions and the values of each array.
        coords: Values along dimensions; those of any other are 0, 1, 2 ...
        attrs: Attributes of the whole object and of its posterior.

    Returns:
        An ``InferenceData`` (0.23) or a ``DataTree`` (1.x).
    """
    datasets = {}
    for group, arrays in groups.items():
        dataset = xr.Dataset(arrays)
        sizes = {str(dim): size for dim, size in dataset.sizes.items()}
        along = {dim: coords.get(dim, np.arange(size)) for dim, size in sizes.items()}
        datasets[group] = dataset.assign_coords(along)
    result = az.InferenceData(**datasets) if FIRST_GENERATION else xr.DataTree.from_dict(datasets)
    result.attrs.update(attrs)
    result["posterior"].attrs.update(attrs)
    return result


def from_netcdf(path: str) -> Any:
    """Read an ArviZ object from a NetCDF file."""
    return az.from_netcdf(path, engine="h5netcdf")


def to_netcdf(data: Any, path: Path) -> None:
    """Write an ArviZ object as a NetCDF file.

    On a full disk HDF5 does not raise but ends the process, so the space is reserved first.

    Raises:
        OSError: If there is not enough space.
    """
    groups = data.groups() if FIRST_GENERATION else data.children
    # Compression usually makes the file smaller; HDF5 adds far less than a MiB for each group.
    files.reserve(path, sum(data[group].nbytes + 2**20 for group in groups))
    data.to_netcdf(str(path), engine="h5netcdf")
    files.flush(path)


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Pareto k (N,) of importance weights, from their logarithms (N, S), with S at least 25.

    Weights that agree to a thousandth have no tail: k is then 0, rather than a fit to the rounding
    errors of thousands of nats. If all weight is on one draw, the fit of the tail breaks down: k is
    then 10, which is also its upper bound.
    """
    k = np.zeros(len(log_weights))
    differ = np.ptp(log_weights, axis=1) > 1e-3
    if not differ.any():
        return k
    # An infinite or missing k already reports a tail that is too heavy for the arithmetic.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if FIRST_GENERATION:
            found = az.psislw(log_weights[differ])[1]
        else:
            with needed("arviz"):
                from arviz_stats.base import array_stats

            # It expects log likelihoods, whose negatives are the leave-one-out log weights.
            found = array_stats.psislw(-log_weights[differ])[1]
    k[differ] = np.nan_to_num(found, nan=10.0, posinf=10.0).clip(max=10.0)
    return k


def elpd(log_likelihood: np.ndarray, pareto_k: np.ndarray, draws: int) -> Any:
    """Convert pointwise log likelihoods of held-out data to what ``az.compare`` takes.

    Args:
        log_likelihood: Log likelihood of each image, (N,), nats.
        pareto_k: Pareto k of each estimate, (N,).
        draws: Number of draws behind each estimate.

    Returns:
        An ``ELPDData`` object of the installed generation.
    """
    count = len(log_likelihood)
    total, se = log_likelihood.sum(), float((count * log_likelihood.var()) ** 0.5)
    bad = bool((pareto_k > GOOD_K).any())
    coords = {"image": np.arange(count)}
    pointwise = xr.DataArray(log_likelihood, coords, ["image"], name="elpd_i")
    k = xr.DataArray(pareto_k, coords, ["image"], name="pareto_shape")
    if FIRST_GENERATION:
        names = ["elpd_loo", "se", "p_loo", "n_samples", "n_data_points", "warning"]
        names += ["loo_i", "pareto_k", "scale", "good_k"]
        values = [total, se, 0.0, draws, count, bad, pointwise, k, "log", GOOD_K]
        return az.ELPDData(data=values, index=names)
    build: Any = getattr(az, "ELPDDataLOO")  # noqa: B009, of 1.x only
    return build(
        elpd=total,
        se=se,
        p=0.0,
        n_samples=draws,
        n_data_points=count,
        scale="log",
        warning=bad,
        good_k=GOOD_K,
        elpd_i=pointwise,
        pareto_k=k,
    )
