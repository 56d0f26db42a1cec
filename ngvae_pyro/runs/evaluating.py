"""The evaluation of a run folder."""

from pathlib import Path

from ngvae_pyro import locks
from ngvae_pyro.evaluation.assessment import assess
from ngvae_pyro.records import Evaluation
from ngvae_pyro.report import pages as report
from ngvae_pyro.report.explorer import explore
from ngvae_pyro.runs.folder import (
    check_own,
    claim,
    load_metrics,
    load_record,
    load_spec,
    read_json,
    write_json,
)
from ngvae_pyro.runs.reading import load_run, run_images


def evaluate_run(folder: str | Path, device: str = "auto") -> Evaluation:
    """Evaluate a trained run and write ``evaluation.json`` and a new ``report.html`` into it.

    Raises:
        UserError: If the folder is not a readable run, another process is writing it, its images
            are missing or are not those that it was trained with, or a file that is not of the run
            is in the way.
    """
    folder, written = Path(folder), ("evaluation.json", "report.html")
    load_spec(folder)
    with locks.held(folder):
        # Checked before the work, which takes minutes.
        check_own(folder, written)
        fit, spec = load_run(folder, device)
        _, held_out = run_images(folder, spec, fit.device)
        numbers = load_metrics(folder)
        result = assess(fit, spec, held_out, numbers["kl"]["z"]["per_latent"])
        claim(folder, written)
        write_json(folder / "evaluation.json", result)
        record, explorer = load_record(folder), explore(fit, held_out, numbers)
        report.write_run_report(folder, spec, numbers, result, record, explorer)
    return result


def load_evaluation(folder: str | Path) -> Evaluation:
    """Read ``evaluation.json`` of a run folder."""
    found: Evaluation = read_json(Path(folder) / "evaluation.json", Evaluation)
    return found
