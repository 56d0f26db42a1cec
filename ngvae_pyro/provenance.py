"""Where a result comes from: versions, machine and command line."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# What the numbers of a training depend on, besides its specs and its images.
DECISIVE = ("ngvae-pyro", "torch", "pyro-ppl")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    packages = ("torch", "pyro-ppl", "arviz", "numpy")
    from ngvae_pyro import __version__

    return {
        "ngvae-pyro": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def command_line() -> str:
    """The command that this process was started by, as one would type it."""
    program = Path(sys.argv[0])
    # `python -m ngvae_pyro` has the path of a file here that nobody typed.
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    words = " ".join([name, *map(shlex.quote, sys.argv[1:])])
    # A name of other bytes than UTF-8 could not be written down.
    return words.encode("utf-8", "backslashreplace").decode()


def device_name(device: torch.device) -> str:
    """The device and what it is."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({_processor()})"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        # Of other systems than Linux, where it says less.
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def renderer(device: torch.device) -> str:
    """What the rounding of a computed image depends on: device, its instructions, torch."""
    kind = device.type
    if kind == "cpu":
        kind += f" {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, torch {version('torch')}"


def here(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What a part of a training was started by and where: one entry of ``run.json``."""
    return {
        "command": command_line(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "system": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
