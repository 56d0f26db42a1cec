"""The memory that data take, and the limits of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ngvae_pyro import data, memory
from ngvae_pyro.errors import UserError

HERE = Path(__file__).parent


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's")
def test_loading_and_training_take_one_and_a_half_times_the_data(tmp_path):
    command = [sys.executable, str(HERE / "memory_cases.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    assert len(peaks) == 3 and all(1 <= peak <= memory.DATA_PEAK for peak in peaks.values()), peaks


def test_what_takes_more_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, imgs=np.zeros((100, 100, 100), np.float64))
    # As float32.
    monkeypatch.setattr(memory, "there", lambda device="cpu": 6_000_000)
    assert len(data.load(path)) == 100
    monkeypatch.setattr(memory, "there", lambda device="cpu": 5_999_999)
    with pytest.raises(UserError, match=r"imgs: shape \(100, 1, 100, 100\): expected .* memory"):
        data.load(path)


def groups(root, lines, limits):
    """A machine's /proc and /sys with control groups of this process and their limits."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for path, limit in limits.items():
        (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / path).write_text(f"{limit}\n")
    return root


V1 = "9:cpu,cpuacct:/a/b\n4:memory:/a/b\n1:name=systemd:/c\n"
UNLIMITED = 9223372036854771712


@pytest.mark.parametrize(
    ("lines", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": 1000}, 1000),  # inside of a container
        ("0::/a/b\n", {"memory.max": "max", "a/b/memory.max": 1000}, 1000),
        ("0::/a/b\n", {"a/memory.max": 900, "a/b/memory.max": 1000}, 900),
        ("0::/a/b\n", {"a/memory.max": 900, "a/b/memory.max": "max"}, 900),
        ("0::/a/b\n", {"a/memory.max": "max", "other/memory.max": 1}, float("inf")),
        ("0::/../x\n", {"memory.max": 1000}, 1000),
        (V1, {"memory/memory.limit_in_bytes": UNLIMITED}, UNLIMITED),
        (V1, {"memory/memory.limit_in_bytes": 1000}, 1000),  # inside of a container
        (V1, {"memory/a/memory.limit_in_bytes": 900, "cpu/a/memory.limit_in_bytes": 1}, 900),
        (V1 + "0::/c\n", {"memory/a/b/memory.limit_in_bytes": 800, "c/memory.max": 700}, 700),
        ("1:cpuset:/a\n", {"memory.max": 1000}, float("inf")),
    ],
)
def test_limits_of_control_groups(tmp_path, lines, limits, expected):
    assert memory.allowed(groups(tmp_path, lines, limits)) == expected


def test_memory_is_the_less_of_machine_and_container(tmp_path, monkeypatch):
    assert memory.allowed(tmp_path) == float("inf")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory, "allowed", lambda: UNLIMITED)
    assert memory.there() == machine
    monkeypatch.setattr(memory, "allowed", lambda: 2**20)
    assert memory.there(torch.device("cpu")) == 2**20
    with pytest.raises(UserError, match=r"sprites: 22000 images of 3x32x32: .* the 0.0 GiB"):
        data.load("sprites")
