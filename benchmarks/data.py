"""Does the training ever wait for its images? Bytes per second that are brought and that are eaten.

    python benchmarks/data.py --json runs/data.json

Images are 64x64 RGB bytes. The first table is what brings batches to the device as floating point:
data that are resident there, data that stay in main memory with 0, 1 and 2 workers
(``fit.workers``), and torch's own DataLoader with as many processes beside it, which takes images
one by one. The second is what steps of the training ask for: the bytes of a batch over the seconds
of ``Trainer.train_step``. Rendering is that of sprites, before the training. Bytes are those of the
stored images; a batch is four times as large once it is floating point.
"""

import argparse
import itertools
import platform
import time
from pathlib import Path

import pyro
import torch

from ngvae_pyro import runs
from ngvae_pyro.data.batches import Batches
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.guide import load_guide
from ngvae_pyro.machine import resolve_device
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import ConvSpec, FitSpec, MLPSpec, ScheduleSpec
from ngvae_pyro.training.trainer import Trainer

SHAPE = (3, 64, 64)
BATCHES = (128, 1024)
WORKERS = (0, 1, 2)
# Decoder and encoder, the defaults of each kind.
NETWORKS = {"MLP": (MLPSpec(depth=8), MLPSpec()), "conv": (ConvSpec(), ConvSpec())}
EVERYTHING = 10**18
WARM_UP = 14


def rate(call, size, device, seconds):
    """Calls a second of ``call(step)``, and the bytes a second if each brings ``size`` images."""

    def finished():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    # What only the first calls do: start workers, shuffle, allocate, and record the step.
    for step in range(WARM_UP):
        call(step)
    began = finished()
    for count in itertools.count(1):
        call(count + WARM_UP - 1)
        if time.perf_counter() - began > seconds:
            break
    batches = count / (finished() - began)
    return {"batches/s": batches, "bytes/s": batches * size * torch.Size(SHAPE).numel()}


def loader(data, size, device, workers):
    """Batches of torch's DataLoader, of the same shuffle; what ``step`` says is not looked at."""
    order = Batches(data, size, seed=0, device=device, resident_bytes=1)
    found = torch.utils.data.DataLoader(
        data,
        batch_sampler=(order.index(step).tolist() for step in itertools.count()),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    images = iter(found)
    return lambda step: ImageData.to_unit(next(images).to(device, non_blocking=True))


def supply(data, size, device, seconds):
    """Rates of every way to bring a batch."""
    ways = {"resident": Batches(data, size, 0, device, EVERYTHING).__getitem__}
    for workers in WORKERS:
        batches = Batches(data, size, 0, device, resident_bytes=1, workers=workers)
        ways[f"streamed, {workers} workers"] = batches.__getitem__
    for workers in WORKERS:
        ways[f"DataLoader, {workers} processes"] = loader(data, size, device, workers)
    return {name: rate(way, size, device, seconds) for name, way in ways.items()}


def demand(data, size, device, seconds):
    """Rates at which steps of the training consume batches that are resident."""
    rates = {}
    for name, (decoder, encoder) in NETWORKS.items():
        model = load_model("normal_gamma", data.image_shape, decoder=decoder)
        guide = load_guide("relaxed", model, encoder=encoder)
        spec = FitSpec(batch_size=size, device=str(device), resident_bytes=EVERYTHING, steps=10**6)
        with pyro.get_param_store().scope():
            trainer = Trainer(model, guide, data, spec, ScheduleSpec())
            rates[name] = rate(lambda step, t=trainer: t.train_step(), size, device, seconds)
    return rates


def machine(device):
    """What the figures were taken on, in words."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{cpu}{gpu}, torch {torch.__version__} with {torch.get_num_threads()} threads"


def table(result):
    lines = [f"{result['machine']}; training on {result['device']}"]
    for part, title in (("supply", "what brings batches"), ("demand", "what steps consume")):
        columns = [f"batches/s at {size} | MB/s at {size}" for size in result[part]]
        lines.append(f"\n| {title} | " + " | ".join(columns) + " |")
        lines.append("|---|" + "---:|---:|" * len(columns))
        for name in next(iter(result[part].values())):
            found = [rates[name] for rates in result[part].values()]
            cells = [f"{r['batches/s']:,.1f} | {r['bytes/s'] / 1e6:,.0f}" for r in found]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(f"\nRendering of sprites: {result['rendering'] / 1e6:,.0f} MB/s.")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=22_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own")
    parser.add_argument("--json", type=Path, default=None, help="a file to write as well")
    words = parser.parse_args()
    if words.threads is not None:
        torch.set_num_threads(words.threads)
    device = resolve_device(words.device)

    sprites(10, resolution=64, device=device)
    began = time.perf_counter()
    data = sprites(words.images, resolution=64, device=device)
    rendering = data.nbytes / (time.perf_counter() - began)
    result = {
        "machine": machine(device),
        "device": str(device),
        "rendering": rendering,
        "supply": {size: supply(data, size, device, words.seconds) for size in BATCHES},
        "demand": {size: demand(data, size, device, words.seconds) for size in BATCHES},
    }
    if words.json is not None:
        runs.write_json(words.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
