"""Names that are imported on first use, and modules that are still found under an older name."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

# The modules of version 0.1, each with its present location; code that imports them still works.
MOVED = {
    "actions": "training.actions",
    "aggregate": "evaluation.aggregate",
    "batches": "data.batches",
    "checking": "evaluation.checking",
    "checkpoints": "training.checkpoints",
    "comparison": "runs.comparison",
    "comparison_plots": "report.comparison_plots",
    "counts": "distributions.poisson",
    "diagnostics": "evaluation.diagnostics",
    "elbos": "objectives.base",
    "evidence": "evaluation.evidence",
    "explorer": "report.explorer",
    "forms": "data.forms",
    "images": "data.images",
    "kernels": "distributions.location_scale",
    "memory": "training.memory",
    "metrics": "evaluation.metrics",
    "pixels": "distributions.pixels",
    "plots": "report.plots",
    "program": "training.program",
    "progress": "training.progress",
    "rendering": "data.rendering",
    "restoring": "training.restoring",
    "scores": "evaluation.scores",
    "selection": "training.actions",
    "steps": "training.steps",
    "svi": "training.trainer",
    "table": "report.table",
    "traversals": "evaluation.traversals",
    "uncertainty": "evaluation.uncertainty",
}


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package whose names are imported when first used.

    Args:
        package: The package's name, for the error message.
        homes: The module of each name, relative to ``ngvae_pyro``.

    Returns:
        The function to assign to the package's ``__getattr__``.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"ngvae_pyro.{homes[name]}"), name)

    return get


class _MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules in :data:`MOVED`; both names give the same module object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "ngvae_pyro" or name not in MOVED:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"ngvae_pyro.{MOVED[spec.name.partition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module has already been executed under its present name; undo the import system's
        # change of its spec.
        renamed = module.__spec__
        assert renamed is not None
        module.__spec__ = renamed.loader_state


def keep_moved_names() -> None:
    """Make the modules in :data:`MOVED` importable under their older names too."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
