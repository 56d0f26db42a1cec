"""What workers do in a test; a module of its own, because it imports little."""

import os
import signal
from typing import Any

import torch

from ngvae_pyro.errors import UserError


def do(run: Any) -> dict[str, float]:
    """Be killed in the middle of one run, and do the others."""
    if run.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"training": 1.0}


def work(job: str) -> tuple[str, int]:
    """Fail or be killed where the job says so; else return it and the number of threads."""
    if job == "fails":
        raise UserError("it fails in a line")
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return job, torch.get_num_threads()
