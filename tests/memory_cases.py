"""Peaks of memory, relative to the size of the images: a script, since a peak is of a process.

Run as ``python memory_cases.py FOLDER``, it writes an .npz for each case into the folder, loads it,
trains one step, and prints ``{case: peak / size}`` as JSON.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import numpy as np

from ngvae_pyro import fit, runs
from ngvae_pyro.variants import run_spec

SIZE = 2**26
# Shape of an image, what is made of its bytes, and the share of the images that is asked for.
CASES = {
    "black and white, Fortran order": ((32, 32), lambda x: np.asfortranarray(x & 1), 1.0),
    "bool, most of them": ((32, 32), lambda x: x < 128, 0.9),
    "float64, channels last": ((16, 16, 3), lambda x: x / 255, 1.0),
}


def status(key):
    """Bytes that Linux states of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


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


def main():
    folder = Path(sys.argv[1])
    rng = np.random.default_rng(0)
    np.savez(folder / "small.npz", imgs=rng.integers(0, 256, (2000, 32, 32), dtype=np.uint8))
    # What is imported and made once is not that of the data.
    train(folder / "small.npz")
    peaks = {}
    for name, (shape, convert, share) in CASES.items():
        count = SIZE // (np.prod(shape) * (4 if "float" in name else 1))
        few = rng.integers(0, 256, (count // 16, *shape), dtype=np.uint8)
        np.savez(folder / "large.npz", imgs=convert(np.concatenate([few] * 16)))
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = status("VmRSS")
        train(folder / "large.npz", **({"size": int(share * 16 * len(few))} if share < 1 else {}))
        peaks[name] = (status("VmHWM") - before) / SIZE
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
