"""The machine: its devices, its random generators, and whether what is asked for fits into memory.

Memory is looked at before any of it is taken. An allocation that fails is no answer: Linux grants
more than there is, and ends the process when it is used.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

import torch

from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.specs import DEVICE

FLOAT_BYTES = 4
# Of the size of data as stored: what loading, splitting and a training take at most. They go
# through the images a few at a time, so the half is room for those, factors and indices.
DATA_PEAK = 1.5
# Of each latent: 1,000 for each of 50 images, of z and the precision, and once more to write them.
DRAWS = 50 * 1_000 * 2 * 2


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: If it is none of auto, cpu, cuda and cuda:N, or CUDA is asked for and there is
            none.
    """
    if not (isinstance(name, str) and re.fullmatch(DEVICE, name)):
        raise UserError(f"device: expected auto, cpu, cuda or cuda:N, got {described(name)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise UserError(f"device '{name}' asked for, but torch sees {found} CUDA devices")
    return device


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and of ``device`` under a seed, and then as they were.

    Raises:
        UserError: If the seed is no whole number that torch can take.
    """
    expect("seed", seed, Integral, "a whole number")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed: expected a whole number in [-2**63, 2**64), got {seed}")
    # Named, because fork_rng otherwise takes every GPU of the machine, and warns of it.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield


def there(device: torch.device | str = "cpu") -> float:
    """Bytes of memory that the machine, its container or its GPU has; infinite if none says."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = math.inf
    if hasattr(os, "sysconf"):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, allowed())


def allowed(root: Path = Path("/")) -> float:
    """Bytes that Linux's control groups, of which containers are made, allow; infinite if none.

    The limit is the smallest of the process's group and those above it: ``memory.max`` of version 2
    (https://docs.kernel.org/admin-guide/cgroup-v2.html), ``memory.limit_in_bytes`` of version 1.

    Args:
        root: Where /proc and /sys are.
    """
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return math.inf
    limits = [math.inf]
    for line in groups.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside of a container the path may be that of the machine, and the container's own group
        # is the top; so what is not there is passed over.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            limit = top.joinpath(*parts[:depth], name)
            if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
                limits.append(int(text))
    return min(limits)


def check(what: str, needed: float, device: torch.device | str = "cpu") -> None:
    """Refuses what cannot fit.

    Args:
        what: What needs the memory, for the message.
        needed: Bytes.
        device: Whose memory.

    Raises:
        UserError: With what is needed and what is there.
    """
    if needed > (room := there(device)):
        raise UserError(
            f"{what}: expected something that fits into the {room / 2**30:,.1f} GiB of memory "
            f"here, got what needs {needed / 2**30:,.1f} GiB"
        )
