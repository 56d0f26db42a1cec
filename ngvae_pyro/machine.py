"""The machine: its devices, its random generators, and whether something fits into its memory.

Memory is checked before it is allocated. Waiting for an allocation to fail would not do: Linux
grants more memory than there is, and kills the process once it is used.
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
# Peak memory of loading, splitting and training, as a multiple of the size of the stored data. They
# go through the images a few at a time; the extra half covers that, the factors and the indices.
DATA_PEAK = 1.5
# Numbers drawn for each latent: 1,000 for each of 50 images, for z and for the precision, of the
# posterior and of the prior, and the same again while they are written.
DRAWS = 50 * 1_000 * 2 * 2 * 2


def resolve_device(name: str) -> torch.device:
    """The device of a name; ``auto`` means CUDA if it is available, and otherwise the CPU.

    Raises:
        UserError: If the name is not auto, cpu, cuda or cuda:N, or names a CUDA device that does
            not exist.
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
    """Seed torch's generators of the CPU and of ``device`` for a block, then restore them.

    Raises:
        UserError: If the seed is not a whole number that torch accepts.
    """
    expect("seed", seed, Integral, "a whole number")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed: expected a whole number in [-2**63, 2**64), got {seed}")
    # Without a list, fork_rng would fork the generator of every GPU and warn about it.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield


def there(device: torch.device | str = "cpu") -> float:
    """The memory of the machine, its container or a GPU in bytes; infinite if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = math.inf
    if hasattr(os, "sysconf"):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, allowed())


def allowed(root: Path = Path("/")) -> float:
    """The memory in bytes that Linux control groups, and so containers, allow.

    It is infinite if there is no limit, and otherwise the smallest limit among the process's group
    and its ancestors: ``memory.max`` in version 2
    (https://docs.kernel.org/admin-guide/cgroup-v2.html), ``memory.limit_in_bytes`` in version 1.

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
        # Inside a container the path may be the machine's while the container's own group is
        # mounted at the top, so missing folders are skipped.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            limit = top.joinpath(*parts[:depth], name)
            if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
                limits.append(int(text))
    return min(limits)


def check(what: str, needed: float, device: torch.device | str = "cpu", hint: str = "") -> None:
    """Refuse something that cannot fit into memory.

    Args:
        what: What needs the memory, for the message.
        needed: How much it needs, in bytes.
        device: The device whose memory is meant.
        hint: What to do then, appended to the message.

    Raises:
        UserError: Stating how much is needed and how much there is.
    """
    if needed > (room := there(device)):
        raise UserError(
            f"{what}: expected something that fits into the {room / 2**30:,.1f} GiB of memory "
            f"here, got what needs {needed / 2**30:,.1f} GiB{hint}"
        )
