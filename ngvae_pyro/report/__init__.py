"""The output for people: figures, tables and pages."""

from typing import TYPE_CHECKING

from ngvae_pyro._doors import lazily

if TYPE_CHECKING:
    from ngvae_pyro.report.pages import (
        COMPARISON_FIGURES,
        RUN_FIGURES,
        write_comparison_report,
        write_run_report,
    )

__getattr__ = lazily(
    __name__,
    {
        "COMPARISON_FIGURES": "report.pages",
        "RUN_FIGURES": "report.pages",
        "write_comparison_report": "report.pages",
        "write_run_report": "report.pages",
    },
)
