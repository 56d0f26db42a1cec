"""Typed specs of a model, a guide and a fit: the only schema and the only place with defaults.

Each spec is a frozen pydantic model. A TOML variant file, a ``--set`` option and Python code all
build the same objects, so that each of them is checked in the same way.
"""

# Everything, so that a new spec is written down in one place.
from ngvae_pyro.specs.base import *  # noqa: F403
from ngvae_pyro.specs.pair import *  # noqa: F403
from ngvae_pyro.specs.run import *  # noqa: F403
from ngvae_pyro.specs.schedule import *  # noqa: F403
