"""The one place that knows which generation of ArviZ is installed (0.23 or 1.x)."""

import warnings
from typing import Any

with warnings.catch_warnings():
    # 0.23 announces its successor once a day; users of this package need not act on it.
    warnings.filterwarnings("ignore", "\\s*ArviZ is undergoing", FutureWarning)
    import arviz as az

FIRST_GENERATION = az.__version__.startswith("0.")


def from_dict(
    groups: dict[str, dict[str, Any]],
    coords: dict[str, Any],
    dims: dict[str, list[str]],
    attrs: dict[str, Any],
) -> Any:
    """``az.from_dict`` of either generation: 0.23 takes keywords, 1.x one mapping.

    On 0.23 the mapping of 1.x is taken as a posterior, without a word; so the version is asked.
    """
    build: Any = az.from_dict
    if FIRST_GENERATION:
        result = build(**groups, coords=coords, dims=dims)
    else:
        result = build(groups, coords=coords, dims=dims)
    result.attrs.update(attrs)
    result["posterior"].attrs.update(attrs)
    return result


def from_netcdf(path: str) -> Any:
    """An ArviZ object from a NetCDF file."""
    return az.from_netcdf(path, engine="h5netcdf")
