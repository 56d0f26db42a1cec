"""What a fit and a look at one ask of torch and Pyro, and leave as it was.

Torch's default type and generators and Pyro's stack of handlers belong to the process, and a
module's mode and buffers to whoever holds it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ngvae_pyro.errors import UserError

# Held by whoever uses what belongs to the process; a thread may take it again.
_LOCK = threading.RLock()
# How often a thread that waits for it looks whether it is a fit that it waits for, in seconds.
_PATIENCE = 0.05
_fits = False


@contextmanager
def float32() -> Iterator[None]:
    """Torch's default type is float32, as it is unless somebody has set it.

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
def _alone() -> Iterator[None]:
    """One thread at a time.

    Raises:
        UserError: Where another thread trains, which may take long.
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
def _in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Modules in training mode or not; afterwards each of their parts in that where it was."""
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
    """For all that looks at a model or a guide: in ``eval()``, and without a trace.

    Within it dropout is off and batch normalisation uses what it has learned. Afterwards modes and
    buffers are as before, also buffers that a module writes to in whatever mode.

    Raises:
        UserError: If a fit is under way in another thread.
    """
    with _alone(), float32(), _in_mode(False, *modules):
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
    """For a training: in ``train()``, and the only one of the process.

    Raises:
        UserError: If another fit is under way, in whatever thread, or weights are not float32.
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
            with float32(), _in_mode(True, *modules):
                yield
        finally:
            _fits = False
