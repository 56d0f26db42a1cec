"""Evaluation of a fit: diagnostics, metrics, evidence, uncertainty and scores of its codes."""

from typing import TYPE_CHECKING

from ngvae_pyro._doors import lazily

if TYPE_CHECKING:
    from ngvae_pyro.evaluation.assessment import (
        LIKELIHOOD_DRAWS,
        LIKELIHOOD_IMAGES,
        NEW_SEED,
        POINTS,
        Sample,
        assess,
        evaluation_images,
        sample,
        varying_factors,
    )
    from ngvae_pyro.runs.evaluating import evaluate_run, load_evaluation

__getattr__ = lazily(
    __name__,
    {
        "LIKELIHOOD_DRAWS": "evaluation.assessment",
        "LIKELIHOOD_IMAGES": "evaluation.assessment",
        "NEW_SEED": "evaluation.assessment",
        "POINTS": "evaluation.assessment",
        "Sample": "evaluation.assessment",
        "assess": "evaluation.assessment",
        "evaluate_run": "runs.evaluating",
        "evaluation_images": "evaluation.assessment",
        "load_evaluation": "runs.evaluating",
        "sample": "evaluation.assessment",
        "varying_factors": "evaluation.assessment",
    },
)
