"""Normal-Gamma variational autoencoders in Pyro: a VAE that counts its own latents."""

import importlib
from typing import TYPE_CHECKING, Any

from ngvae_pyro._doors import MOVED, keep_moved_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ngvae_pyro import dimension, objectives
    from ngvae_pyro.data import load as load_data
    from ngvae_pyro.data.cells import from_anndata
    from ngvae_pyro.data.images import ImageData
    from ngvae_pyro.data.rendering import sprites
    from ngvae_pyro.data.sources import from_numpy, stream
    from ngvae_pyro.errors import UserError
    from ngvae_pyro.estimator import NGVAE
    from ngvae_pyro.evaluation import metrics, scores, uncertainty
    from ngvae_pyro.evaluation.checking import check
    from ngvae_pyro.evaluation.diagnostics import evaluate, to_arviz
    from ngvae_pyro.evaluation.evidence import log_likelihood
    from ngvae_pyro.fitted import Fit
    from ngvae_pyro.guide import load_guide
    from ngvae_pyro.model import load_model
    from ngvae_pyro.report import plots
    from ngvae_pyro.runs import load_run, save_run
    from ngvae_pyro.runs.counting import count
    from ngvae_pyro.specs import FitSpec, ModelSpec, RunSpec
    from ngvae_pyro.training.callbacks import (
        Callback,
        CsvLog,
        EarlyStopping,
        MLflowLog,
        TensorBoardLog,
        TrainingView,
    )
    from ngvae_pyro.training.checkpoints import Checkpoints
    from ngvae_pyro.training.trainer import fit

# The module of each public name. Names are imported on first use, because torch alone takes seconds
# to import and `ngvae --help` does not need it.
_HOMES = {
    "Callback": "training.callbacks",
    "Checkpoints": "training.checkpoints",
    "CsvLog": "training.callbacks",
    "EarlyStopping": "training.callbacks",
    "Fit": "fitted",
    "FitSpec": "specs",
    "ImageData": "data.images",
    "MLflowLog": "training.callbacks",
    "ModelSpec": "specs",
    "NGVAE": "estimator",
    "RunSpec": "specs",
    "TensorBoardLog": "training.callbacks",
    "TrainingView": "training.callbacks",
    "UserError": "errors",
    "check": "evaluation.checking",
    "count": "runs.counting",
    "evaluate": "evaluation.diagnostics",
    "fit": "training.trainer",
    "from_anndata": "data.cells",
    "from_numpy": "data.sources",
    "load_data": "data",
    "load_guide": "guide",
    "load_model": "model",
    "load_run": "runs.reading",
    "log_likelihood": "evaluation.evidence",
    "save_run": "runs.saving",
    "sprites": "data.rendering",
    "stream": "data.sources",
    "to_arviz": "evaluation.diagnostics",
}
# Modules that are public as a whole.
_MODULES = {
    "dimension": "dimension",
    "metrics": "evaluation.metrics",
    "objectives": "objectives",
    "plots": "report.plots",
    "scores": "evaluation.scores",
    "uncertainty": "evaluation.uncertainty",
}
__all__ = [*sorted(_HOMES), *_MODULES, "__version__"]


keep_moved_names()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ngvae_pyro.{_MODULES[name]}")
    if name in MOVED:
        return importlib.import_module(f"ngvae_pyro.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ngvae_pyro' has no attribute '{name}'")
    home = importlib.import_module(f"ngvae_pyro.{_HOMES[name]}")
    value = getattr(home, "load" if name == "load_data" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
