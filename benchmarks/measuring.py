"""What the benchmarks of speed share: contenders that take turns, each in a process of its own.

In turns, because another program on the machine then slows all of them alike; in processes of their
own, because a peak of memory belongs to a process, and libraries' threads and caches do too.
"""

import importlib
import importlib.metadata
import math
import os
import platform
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

# The sharing of tensors between processes: images are rendered once.
from torch import multiprocessing

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites

# A block of steps is timed, not a step: on CUDA the end of a step is not the end of its work.
BLOCK_SECONDS = 0.1
# Steps before the first timed one. The package may record its step in the first few dozen.
WARM_UP = 20
# Of every contender, however slow.
LEAST_ROUNDS = 5
MIB = 2**20


class Unavailable(Exception):
    """A contender that this machine cannot run, and why."""


class Contender:
    """A way to train, built and run in a process of its own.

    Args:
        build: Class or function of the arguments; what it makes has ``steps(count)``, which takes
            training steps, and ``loss()``, which is asked once at the end.
        needs: Modules that it imports. Without them it is not available, and what they take is
            not counted as its memory.
        warm_up: Steps that are not timed.
    """

    def __init__(self, build, *arguments, needs=(), warm_up=WARM_UP):
        self.warm_up, self.block = warm_up, 1
        # Of a step, in each round.
        self.seconds, self.processor_seconds = [], []
        # A server that has imported torch forks in no time; a fresh interpreter needs seconds. Adam
        # imports torch._dynamo at its first step, which would count as memory of the contender.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ngvae_pyro.svi", "torch._dynamo"])
        self.pipe, remote = context.Pipe()
        parts = (remote, build, arguments, needs)
        self.process = context.Process(target=_serve, args=parts, daemon=True)
        self.process.start()
        remote.close()
        self.unavailable = self._answer()

    def _answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError("a contender failed; its own message is above") from None

    def time(self, count):
        """Seconds that so many steps take, and those of the processor, all threads together."""
        self.pipe.send(count)
        return self._answer()

    def get_ready(self):
        """Warm up, and find how many steps a block has."""
        self.time(self.warm_up)
        # Twice, because one step alone may be an unlucky one.
        for _ in range(2):
            seconds, _ = self.time(self.block)
            self.block = math.ceil(BLOCK_SECONDS * self.block / seconds)

    def take_turn(self):
        seconds, processor = self.time(self.block)
        self.seconds.append(seconds / self.block)
        self.processor_seconds.append(processor / self.block)

    def finish(self):
        """The measurements, for a table and for JSON."""
        self.pipe.send(0)
        row = self._answer()
        self.process.join()
        quartiles = statistics.quantiles(self.seconds, n=4)
        return {
            "ms": 1e3 * statistics.median(self.seconds),
            "ms_quartiles": [1e3 * quartiles[0], 1e3 * quartiles[2]],
            "processor_ms": 1e3 * statistics.median(self.processor_seconds),
            "rounds": len(self.seconds),
            "steps_per_round": self.block,
            **row,
        }


def _serve(pipe, build, arguments, needs):
    """The other end of the pipe: steps are taken until none are asked for."""
    try:
        for name in needs:
            _import(name)
        before = _peak_rss()
        contender = build(*arguments)
    except Unavailable as reason:
        pipe.send(str(reason))
        return
    pipe.send(None)
    while count := _asked(pipe):
        began, processor = time.perf_counter(), time.process_time()
        contender.steps(count)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - began, time.process_time() - processor))
    # Before the loss is asked for, which may look at more images than a step.
    memory = _peak_cuda() if torch.cuda.is_initialized() or _jax_on_gpu() else _peak_rss() - before
    loss = contender.loss()
    if not math.isfinite(loss):
        raise RuntimeError(f"a loss of {loss}: the steps that were timed are no training")
    pipe.send({"mib": memory / MIB, "loss": loss})


def _asked(pipe):
    try:
        return pipe.recv()
    except EOFError:
        # Another contender failed, and its message should be the only one.
        sys.exit()


def _import(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise
        raise Unavailable(f"{package} is not installed") from None


def _peak_rss():
    """The most memory that this process has had, in bytes."""
    # In bytes on macOS, and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _jax_on_gpu():
    jax = sys.modules.get("jax")
    return jax is not None and jax.default_backend() == "gpu"


def _peak_cuda():
    if _jax_on_gpu():
        return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"]
    return torch.cuda.max_memory_allocated()


def race(contenders, seconds):
    """Rows of contenders {name: Contender} that take turns for so many seconds, at least.

    A row has the medians over the rounds; with ``"unavailable"`` it has the reason alone.
    """
    running = {name: c for name, c in contenders.items() if c.unavailable is None}
    for contender in running.values():
        contender.get_ready()
    order, shuffled = list(running.values()), random.Random(0)
    began, rounds = time.perf_counter(), 0
    while rounds < LEAST_ROUNDS or time.perf_counter() - began < seconds:
        # Nobody always comes after the same one, which may leave the caches in its own state.
        shuffled.shuffle(order)
        for contender in order:
            contender.take_turn()
        rounds += 1
    return {
        name: c.finish() if name in running else {"unavailable": c.unavailable}
        for name, c in contenders.items()
    }


def ratio(contender, other):
    """Median over the rounds of one time by another; a slow round is slow for both."""
    pairs = zip(contender.seconds, other.seconds, strict=True)
    return statistics.median(one / two for one, two in pairs)


def pictures(count, shape):
    """Sprites (count, C, H, W) of any shape as uint8; after the first 2,000 they are repeated."""
    rendered, _ = sprites(min(count, 2000), resolution=64).fitted(shape)
    few = (ImageData.to_unit(rendered.images) * 255).to(torch.uint8)
    return few.repeat(math.ceil(count / len(few)), 1, 1, 1)[:count]


def machine(device, packages=()):
    """What a time depends on: processor, threads, GPU and versions."""
    found = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
    }
    for name in ("torch", "pyro-ppl", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _cpu():
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_words(found):
    """The machine in a line."""
    parts = [f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads"]
    if found["gpu"]:
        parts.append(found["gpu"])
    names = [n for n in found if n not in ("cpu", "cores", "threads", "gpu") and found[n]]
    return "; ".join([*parts, ", ".join(f"{name} {found[name]}" for name in names)])
