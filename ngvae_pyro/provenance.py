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

# The packages that determine the numbers of a training, besides its specs and images.
DECISIVE = ("ngvae-pyro", "torch", "pyro-ppl")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries on which results depend."""
    packages = ("torch", "pyro-ppl", "arviz", "numpy")
    from ngvae_pyro import __version__

    return {
        "ngvae-pyro": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def command_line() -> str:
    """The command that started this process, as one would type it."""
    program = Path(sys.argv[0])
    # Under `python -m ngvae_pyro`, argv[0] is the path of a file, which nobody typed.
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    words = " ".join([name, *map(shlex.quote, sys.argv[1:])])
    # File names that are not UTF-8 could not be written to a file.
    return words.encode("utf-8", "backslashreplace").decode()


def device_name(device: torch.device) -> str:
    """The device with the model name of its GPU or processor."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({_processor()})"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        # Not Linux. The function below says less, so it is the second choice.
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def renderer(device: torch.device) -> str:
    """The device, instruction set and torch version, which determine how images are rounded."""
    kind = device.type
    if kind == "cpu":
        kind += f" {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, torch {version('torch')}"


def here(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """How and where a part of a training was started: one entry of ``starts`` in ``run.json``.

    Args:
        device: The device that it trains on.
        processes: How many processes train together.
    """
    return {
        "command": command_line(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "system": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
