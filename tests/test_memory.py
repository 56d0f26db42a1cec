"""The memory that data take, and the limits of it."""

import os

import numpy as np
import pytest
import torch
from support import growth, needs_peak

from ngvae_pyro import fit, machine, runs
from ngvae_pyro.data import sources as data
from ngvae_pyro.errors import UserError
from ngvae_pyro.variants import run_spec

# Libraries, threads and pages of files take 25 to 70 MiB of their own, whatever the data.
SIZE = 256 * 2**20
# Shape of an image, what is made of its bytes, and the share of the images that is asked for.
CASES = {
    "black and white, Fortran order": ((32, 32), lambda x: np.asfortranarray(x & 1), 1.0),
    "bool, most of them": ((32, 32), lambda x: x < 128, 0.9),
    "float64, channels last": ((16, 16, 3), lambda x: x / 255, 1.0),
}


def train(path, **data):
    changes = {
        "data": {"name": str(path), **data},
        "model": {"decoder": {"kind": "mlp", "width": 8, "depth": 1}},
        "guide": {"encoder": {"kind": "mlp", "width": 8, "depth": 1}},
        "fit": {"steps": 1, "batch_size": 8, "device": "cpu"},
    }
    spec = run_spec("gaussian", "gaussian", changes, "test")
    images, held_out = runs.load_data(spec)
    model, guide = runs.load_pair(spec, images)
    fit(model, guide, images, spec.fit, progress=False)
    return images.digest, held_out.digest


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A training before, since what is imported and made once is not that of the data."""
    path = tmp_path_factory.mktemp("warm") / "small.npz"
    np.savez(path, imgs=np.random.default_rng(0).integers(0, 2, (2000, 32, 32), dtype=np.uint8))
    train(path)


@needs_peak
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if "Fortran" in case else ()) for case in CASES],
)
def test_loading_and_training_take_one_and_a_half_times_the_data(case, tmp_path, warm):
    shape, convert, share = CASES[case]
    count = SIZE // (np.prod(shape) * (4 if "float" in case else 1))
    few = np.random.default_rng(0).integers(0, 256, (count // 16, *shape), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", imgs=convert(np.concatenate([few] * 16)))
    size = {"size": int(share * 16 * len(few))} if share < 1 else {}
    grown = growth(lambda: train(tmp_path / "large.npz", **size))
    (tmp_path / "large.npz").unlink()
    assert SIZE < grown < machine.DATA_PEAK * SIZE


def test_what_takes_more_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, imgs=np.zeros((100, 100, 100), np.float64))
    # As float32.
    monkeypatch.setattr(machine, "there", lambda device="cpu": 6_000_000)
    assert len(data.load(path)) == 100
    monkeypatch.setattr(machine, "there", lambda device="cpu": 5_999_999)
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
    assert machine.allowed(groups(tmp_path, lines, limits)) == expected


def test_memory_is_the_less_of_machine_and_container(tmp_path, monkeypatch):
    assert machine.allowed(tmp_path) == float("inf")
    all_of_it = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(machine, "allowed", lambda: UNLIMITED)
    assert machine.there() == all_of_it
    monkeypatch.setattr(machine, "allowed", lambda: 2**20)
    assert machine.there(torch.device("cpu")) == 2**20
    with pytest.raises(UserError, match=r"sprites: 22000 images of 3x32x32: .* the 0.0 GiB"):
        data.load("sprites")
