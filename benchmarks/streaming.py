"""What a million images take that stay on the disk: memory, and images a second of a training.

    python benchmarks/streaming.py --images 1000000 --json runs/streaming.json

Blobs of 64x64 grey bytes come from an ``.npy`` file, from an HDF5 file with chunks of 256 images
that are packed with gzip at level 1, and from a torch Dataset that renders each when it is asked
for; 50,000 of them in memory are what the others are compared with. Each way has a process of its
own, which loads the images, holds out a tenth, and trains a vanilla VAE with small networks, whose
steps take little time beside what reading takes. *Peak* is the most memory that the process ever
had, mapped files included (``VmHWM``), of which *imports* were there before the first image;
*anonymous* is what it has at the end without files (``RssAnon``). *Images a second* are those of
the median step. Before the training the file
is taken out of the cache of the system, into which a pass over it puts what fits there. The files,
4 GB for a million images, are in the folder of temporary files (``TMPDIR``) and are removed.

The table is Markdown on standard output. It needs Linux.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import in_words, machine

import ngvae_pyro as ng
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.specs import MLPSpec

SIDE = 64
BLOCK = 4096
IN_MEMORY = 50_000
WARM_UP = 50
NETWORK = MLPSpec(width=256, depth=2)
GRID = np.arange(SIDE, dtype=np.float32)


def blobs(start, stop):
    """The images of these numbers: a blob at a place and of a width that follow from the number."""
    number = np.arange(start, stop, dtype=np.float64)[:, None]
    # Fractions of multiples of irrational numbers fill the cube evenly.
    x, y, width = (np.modf(number * root)[0] for root in (0.8191725, 0.6710436, 0.5497005))
    width = 4 + 6 * width
    down, across = (np.exp(-(((GRID - 16 - 32 * at) / width) ** 2)) for at in (y, x))
    return (255 * down[:, :, None] * across[:, None, :]).astype(np.uint8)


class Rendered(torch.utils.data.Dataset):
    """Blobs that are rendered one by one."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return blobs(number, number + 1)[0]


def blocks(count):
    for start in range(0, count, BLOCK):
        yield start, blobs(start, min(start + BLOCK, count))


def write_npy(path, count):
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, block in blocks(count):
            file.write(block.data)


def write_hdf5(path, count):
    import h5py

    with h5py.File(path, "w") as file:
        options = {"chunks": (256, SIDE, SIDE), "compression": "gzip", "compression_opts": 1}
        images = file.create_dataset("images", (count, SIDE, SIDE), np.uint8, **options)
        for start, block in blocks(count):
            images[start : start + len(block)] = block


def in_memory(path, count):
    return ImageData("blobs", np.concatenate([b for _, b in blocks(min(count, IN_MEMORY))]))


# What is written before, and how it is loaded.
WAYS = {
    "in memory": (None, in_memory),
    ".npy": (write_npy, lambda path, count: ng.load_data(path, stream=True)),
    "HDF5": (write_hdf5, lambda path, count: ng.load_data(path, stream=True)),
    "Dataset": (None, lambda path, count: ng.stream(Rendered(count))),
}


class Clock(ng.Callback):
    """The seconds of single steps."""

    def __init__(self):
        self.last, self.seconds = 0.0, []

    def on_step(self, view):
        now = time.perf_counter()
        if view.step > WARM_UP:
            self.seconds.append(now - self.last)
        self.last = now


def uncached(path):
    """Take a file out of the system's cache, where there is a call for that."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def status(key):
    """Bytes that Linux states of this process; getrusage would have those of its parent too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measured(way, path, count, steps):
    """A row of the table, made in a process of its own."""
    torch.set_num_threads(1)
    if path.exists():
        uncached(path)
    imports, began = status("VmHWM"), time.perf_counter()
    data = WAYS[way][1](path, count)
    loaded = time.perf_counter() - began
    train = data.split(0.1, seed=0)[0]
    clock = Clock()
    model = ng.load_model("gaussian", train, decoder=NETWORK)
    guide = ng.load_guide("gaussian", model, encoder=NETWORK)
    began = time.perf_counter()
    options = {"steps": steps, "device": "cpu", "progress": False, "callbacks": [clock]}
    fit = ng.fit(model, guide, train, **options)
    trained = time.perf_counter() - began
    return {
        "way": way,
        "images": len(data),
        "bytes": data.nbytes,
        "peak": status("VmHWM"),
        "imports": imports,
        "anonymous": status("RssAnon"),
        "seconds to load": loaded,
        "seconds to train": trained,
        "images/s": fit.spec.batch_size / np.median(clock.seconds),
        "loss": fit.history[-1]["loss"],
    }


def _answer(pipe, *words):
    pipe.send(measured(*words))


def in_a_process(*words):
    context = multiprocessing.get_context("spawn")
    pipe, remote = context.Pipe()
    process = context.Process(target=_answer, args=(remote, *words))
    process.start()
    remote.close()
    row = pipe.recv()
    process.join()
    return row


def table(rows):
    names = ["images", "GB", "peak, GB", "imports, GB", "anonymous, GB"]
    names += ["load, s", "train, s", "images a second"]
    lines = ["| from | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for row in rows:
        sizes = [f"{row[key] / 1e9:.2f}" for key in ("bytes", "peak", "imports", "anonymous")]
        cells = [f"{row['images']:,}", *sizes]
        cells += [f"{row[f'seconds to {what}']:.0f}" for what in ("load", "train")]
        lines.append(f"| {row['way']} | " + " | ".join(cells) + f" | {row['images/s']:,.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    rows = []
    for way in words.ways.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "images.h5" if way == "HDF5" else "images.npy")
            if WAYS[way][0] is not None:
                WAYS[way][0](path, words.images)
            rows.append(in_a_process(way, path, words.images, words.steps))
        print(f"{way}: done", file=sys.stderr)
    print(table(rows))
    print(in_words(machine("cpu")))
    if words.json:
        words.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
