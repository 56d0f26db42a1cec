"""The check of the posterior of a run folder."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ngvae_pyro import files, locks
from ngvae_pyro.evaluation.checking import WRITTEN, Check, check
from ngvae_pyro.report.checks import draw
from ngvae_pyro.runs.folder import check_own, claim, load_spec, write_json
from ngvae_pyro.runs.reading import load_run, run_images


def check_run(
    folder: str | Path,
    device: str = "auto",
    *,
    stage: Callable[[str], AbstractContextManager[Any]] = lambda text: nullcontext(),
    **settings: int,
) -> Check:
    """Check the guide of a run on held-out images, and write ``check.json`` and its figure.

    Args:
        folder: The run folder.
        device: As for :func:`ngvae_pyro.load_run`.
        stage: As for :func:`ngvae_pyro.check`.
        settings: ``images``, ``warmup`` and ``draws`` of :func:`ngvae_pyro.check`; the seed is the
            run's.

    Raises:
        UserError: As :func:`ngvae_pyro.check`; also if the folder is not a readable run, another
            process is writing it, its images are not those that it was trained with, or a file that
            is not of the run is in the way.
    """
    folder = Path(folder)
    load_spec(folder)
    with locks.held(folder):
        # Checked before the work, which takes minutes.
        check_own(folder, WRITTEN)
        fit, spec = load_run(folder, device)
        _, held_out = run_images(folder, spec, fit.device)
        result = check(fit, held_out, seed=spec.fit.seed, stage=stage, **settings)
        claim(folder, WRITTEN)
        files.make_folder(folder / "figures")
        draw(folder / "figures" / "check.png", result)
        write_json(folder / "check.json", result)
    return result
