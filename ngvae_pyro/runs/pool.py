"""Jobs in processes of their own, on this machine or on a Ray cluster, with results as they end.

Every process has its share of the cores as threads. A process that is killed takes one job with it,
and not the others.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

import torch

from ngvae_pyro.errors import UserError, one_line
from ngvae_pyro.extras import needed
from ngvae_pyro.interrupts import Interrupted

Job = TypeVar("Job")
Result = TypeVar("Result")


class Lost(RuntimeError):
    """The process of a job ended before the job did."""

    def __init__(self) -> None:
        super().__init__("its process was killed, or out of memory")


def run_all(
    jobs: Sequence[Job],
    function: Callable[[Job], Result],
    processes: int,
    ray: str | None = None,
    gpus: int = 0,
) -> Iterator[tuple[Job, Callable[[], Result]]]:
    """Yield each job as it ends, with a function that returns its result or raises its error.

    Args:
        jobs: What ``function`` is called with.
        function: A function of a module, since it is imported where it runs.
        processes: How many jobs run at once. One runs in this process, several in as many others.
        ray: Address of a Ray cluster, or ``local`` for one that is started here and ended with the
            jobs. The cluster runs as many jobs at once as it has room for, each on the cores that
            it would have here. It needs this package, and any files that the function reads and
            writes, in the same place on all its machines.
        gpus: GPUs of the cluster that a job takes.

    Yields:
        Jobs, with functions that raise what ``function`` raised, or :class:`Lost`.

    Raises:
        UserError: If Ray is asked for and is not installed, or there is no cluster.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    if ray is not None:
        yield from _on_ray(jobs, function, threads, ray, gpus)
    elif processes == 1:
        for job in jobs:
            yield job, partial(function, job)
    else:
        yield from _in_processes(jobs, function, processes, threads)


def _in_processes(
    jobs: Sequence[Job], function: Callable[[Job], Result], processes: int, threads: int
) -> Iterator[tuple[Job, Callable[[], Result]]]:
    def process() -> ProcessPoolExecutor:
        # Not forked, because torch's threads do not survive a fork.
        return ProcessPoolExecutor(
            1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
        )

    # Not one pool of all processes, which would end all of them if one is killed.
    idle = [process() for _ in range(min(processes, len(jobs)))]
    waiting = list(reversed(jobs))
    busy: dict[Future[Result], tuple[Job, ProcessPoolExecutor]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                job, pool = waiting.pop(), idle.pop()
                try:
                    future = pool.submit(function, job)
                except BrokenProcessPool:
                    # The process was killed while it was idle.
                    pool = process()
                    future = pool.submit(function, job)
                busy[future] = job, pool
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                job, pool = busy.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    pool.shutdown()
                    pool = process()
                idle.append(pool)
                yield job, partial(_of_process, future)
    except Interrupted:
        # The signal reached only this process, whereas a terminal's Ctrl-C reaches all of them.
        for worker in active_children():
            worker.terminate()
        raise
    finally:
        for pool in (*idle, *(pool for _, pool in busy.values())):
            pool.shutdown(cancel_futures=True)


def _of_process(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        raise Lost from None


@dataclass(frozen=True)
class _Joining:
    """Makes a line of what Ray raises where it joins or starts no cluster.

    That is ConnectionError, TimeoutError and other OSErrors where nobody answers, ValueError for an
    address, RuntimeError and errors of its own where a part fails, and also the class Exception
    itself: of a node or a dashboard that does not start in time (Ray 2.60,
    ``_private/node.py`` and ``_private/services.py``). Other subclasses of Exception are faults.

    Args:
        address: As for :func:`run_all`.
        own: ``ray.exceptions.RayError``.
    """

    address: str
    own: type[Exception]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if kind is Exception or isinstance(error, (OSError, RuntimeError, ValueError, self.own)):
            reason = one_line(next(iter(str(error).strip().splitlines()), type(error).__name__))
            what = "Ray does not start" if self.address == "local" else "no Ray cluster there"
            raise UserError(f"--ray {self.address}: {what}: {reason}") from None


def _on_ray(
    jobs: Sequence[Job],
    function: Callable[[Job], Result],
    threads: int,
    address: str,
    gpus: int,
) -> Iterator[tuple[Job, Callable[[], Result]]]:
    # Ray has 20 tries at an address where nobody answers, of 40 seconds each.
    if address != "local":
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    # Nobody has agreed to statistics about what is run here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with needed("ray"):
        import ray
    # The workers import the function from where it comes from here.
    path = os.pathsep.join(part for part in sys.path if part)
    try:
        with _Joining(address, ray.exceptions.RayError):
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
        # A job that was killed would be killed again; the same command goes on with it.
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_with_threads)
        job_of = {task.remote(function, job, threads): job for job in jobs}
        waiting = list(job_of)
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            yield job_of[done], partial(_of_ray, ray, done)
    finally:
        ray.shutdown()


def _with_threads(function: Callable[[Job], Result], job: Job, threads: int) -> Result:
    torch.set_num_threads(threads)
    return function(job)


def _of_ray(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # The function's own error, as processes raise it.
        raise error.cause from None
    except ray.exceptions.RayError:
        raise Lost from None
