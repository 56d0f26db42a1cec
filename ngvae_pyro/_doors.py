"""Names that are imported on first use, and modules that are found under an older name."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

# Modules of version 0.1, each with its home of today: code that imports them goes on working.
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
    """A package's ``__getattr__``: its names come from their modules when they are asked for.

    Args:
        package: Its name.
        homes: The module of each name, below ``ngvae_pyro``.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"ngvae_pyro.{homes[name]}"), name)

    return get


class _MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of :data:`MOVED`: the very module of today, under both names."""

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
        # It has been executed, as what it is called today; the import system has just renamed it.
        renamed = module.__spec__
        assert renamed is not None
        module.__spec__ = renamed.loader_state


def keep_moved_names() -> None:
    """Let the modules of :data:`MOVED` be imported by their older names too."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
