"""Contexts for training and for evaluation, which restore the state of torch and Pyro afterwards.

Torch's default type and generators and Pyro's stack of handlers belong to the process, and a
module's mode and buffers belong to the caller. What networks are given besides their input belongs
to the thread.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ngvae_pyro.errors import UserError

# Held while a thread uses state that belongs to the process; the thread may take it again.
_LOCK = threading.RLock()
# Interval in seconds at which a waiting thread checks whether a fit holds the lock.
_PATIENCE = 0.05
_fits = False

_GIVEN: ContextVar[Tensor | None] = ContextVar("covariates", default=None)


@contextmanager
def given(covariates: Tensor | None) -> Iterator[None]:
    """Give networks the covariates of the images that they are called with.

    A handler around model and guide, as those of Pyro are, so that neither has to pass them on.
    Networks without covariates do not see them.

    Args:
        covariates: The design matrix (B, Q) of B images, one row (Q,) for all, or None, where
            networks take their reference.
    """
    token = _GIVEN.set(covariates)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def covariates() -> Tensor | None:
    """What is :func:`given` here."""
    return _GIVEN.get()


def given_rows(index: Any) -> AbstractContextManager[None]:
    """Give networks only some rows of what is :func:`given` here, those of some of the images."""
    rows = _GIVEN.get()
    return given(rows if rows is None or rows.dim() == 1 else rows[index])


@contextmanager
def float32() -> Iterator[None]:
    """Make float32 torch's default type, in case the caller has set another one.

    Weights and densities of this package are float32 whatever the default is, so that a run is the
    same wherever it is trained and read.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def forward_mode() -> Iterator[None]:
    """Differentiate by torch's forward mode without its notice of its own doing.

    It uses ``torch.jit.script`` when first used, which is deprecated.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        yield


@contextmanager
def _alone() -> Iterator[None]:
    """Admit one thread at a time.

    Raises:
        UserError: If another thread trains, which may take long.
    """
    while not _LOCK.acquire(timeout=_PATIENCE):
        if _fits:
            raise UserError(
                "a fit is under way in another thread, and Pyro's handlers are shared by all "
                "threads; train in processes of their own"
            )
    try:
        yield
    finally:
        _LOCK.release()


@contextmanager
def in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Put modules into training mode or out of it, and restore the mode of each part at the end."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluate a model or a guide: in ``eval()``, and without side effects on it.

    Inside, dropout is off and batch normalisation uses its learned statistics. Afterwards modes and
    buffers are as before, even buffers that a module writes to in either mode.

    Raises:
        UserError: If a fit is under way in another thread.
    """
    with _alone(), float32(), in_mode(False, *modules):
        buffers = [buffer for module in modules for buffer in module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)


def _check_float32(*modules: nn.Module) -> None:
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.dtype is not torch.float32:
                raise UserError(
                    f"{type(module).__name__}.{name}: expected float32 weights, got "
                    f"{str(parameter.dtype).removeprefix('torch.')}; call .float() on the module"
                )


@contextmanager
def fitting(*modules: nn.Module) -> Iterator[None]:
    """Train: in ``train()``, and as the only fit of the process.

    Raises:
        UserError: If another fit is under way, in any thread, or weights are not float32.
    """
    global _fits
    _check_float32(*modules)
    with _alone():
        if _fits:
            raise UserError(
                "a fit is under way in this process, and Pyro's handlers are shared by all of it; "
                "train one after the other, or in processes of their own"
            )
        _fits = True
        try:
            with float32(), in_mode(True, *modules), warnings.catch_warnings():
                # Pyro says so of each parameter that somebody holds still.
                warnings.filterwarnings("ignore", ".* was not registered in the param store")
                yield
        finally:
            _fits = False
