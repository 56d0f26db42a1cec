"""What several files of tests need: small pairs, the command line in this process, pages."""

import ctypes
import gc
import html
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
import torch
from input_cases import few_figures, once
from typer.testing import CliRunner

from ngvae_pyro.cli import app
from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import load_guide
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import ConvSpec, MLPSpec, ResidualConvSpec, SavedRun, parse
from ngvae_pyro.training import trainer as svi

SMALL = MLPSpec(width=16, depth=2)
CONV = ConvSpec(channels=4, width=16)
PATCHED = ResidualConvSpec(channels=4, width=16, depth=2)


def load(data, model="normal_gamma", guide="relaxed", network=SMALL):
    """A small pair for images, always with the same weights."""
    torch.manual_seed(0)
    model = load_model(model, data, latent_size=4, decoder=network)
    return model, load_guide(guide, model, encoder=network)


class RayError(Exception):
    """As that of Ray, of which its errors are subclasses."""


# The command line -----------------------------------------------------------------------------

# Words of a training that takes a fraction of a second.
SHORT = ["--steps", "6", "--latents", "4", "--set", "fit.batch_size=8", "--device", "cpu"]
SHORT += ["--set", "data.size=120", "--set", "model.decoder.width=8"]
SHORT += ["--set", "guide.encoder.width=8", "--set", "fit.monitor_every=3"]


def literally(*words, code=0):
    """Runs the command line in this process; a UserError becomes what `main` makes of it."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        assert code == 2, result.exception
        return str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def ngvae(*words, code=0):
    """The command line, where a later word takes the place of an earlier, of SHORT for instance."""
    return literally(*once(words), code=code)


def cut(monkeypatch, after=None):
    """A signal before one of the next steps, those of forks included; never without a number."""
    left = [after]

    def heed(trainer, now=False):
        if left[0] is not None and not now:
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(svi.Trainer, "heed", heed)


def status(key):
    """Bytes that Linux states of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


needs_peak = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's"
)


def growth(work):
    """Bytes that this process needs at most while it does some work, and had not before."""
    gc.collect()
    # Memory that was used before and is kept would hide as much of the growth.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def in_a_child(work):
    """Exit code of a copy of this process that does some work; it ends without tidying up."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def undrawn():
    """Runs get files that look like figures, and no draws of the posterior: both take seconds.

    Those of every pair are drawn in test_runs.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ngvae_pyro.report.plots.save_all", few_figures)
        patch.setattr("ngvae_pyro.evaluation.diagnostics.to_arviz", lambda *_, **options: None)
        patch.setattr("ngvae_pyro._arviz.to_netcdf", lambda posterior, path: path.touch())
        yield


@contextmanager
def script(name, *others):
    """A script of benchmarks/ as a module; it is forgotten with the others that it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield import_module(name)
    for module in (name, *others):
        del sys.modules[module]


# Figures and pages ----------------------------------------------------------------------------


def texts(ax):
    """What is written into Axes, apart from title and ticks."""
    inside = [text.get_text() for text in ax.texts]
    return inside + [text for child in ax.child_axes for text in texts(child)]


def measured(probs, leaking=(), precision=5000.0):
    """Metrics of a run with these p and a verdict that names what leaks."""
    on = [p > 0.5 for p in probs]
    mean = [precision - k if x else 1.0 for k, x in enumerate(on)]
    findings = [
        {
            "kind": "leaking",
            "text": "",
            "reason": "",
            "latents": list(leaking),
            "changes": {},
        }
    ]
    return {
        "informative": sum(on),
        "probs": list(probs),
        "precision": {"mean": mean, "5%": mean, "95%": mean},
        "variance_of_loc": [1.0 if x or k in leaking else 0.0 for k, x in enumerate(on)],
        "kl": {"z": {"total": 4.0, "per_latent": [4.0 if x else 0.0 for x in on]}},
        "verdict": {"settled": not leaking, "findings": findings if leaking else []},
    }


# Tags that have no end.
VOID = {"meta", "img", "br", "hr", "link", "input"}


def saved(names="normal_gamma+relaxed", **tables):
    model, _, guide = names.partition("+")
    if guide == "gaussian":
        tables = {"model": {"prior": {"family": "gaussian"}}, "guide": {"family": guide}} | tables
    values = {
        "model_name": model,
        "guide_name": guide,
        "image_shape": [3, 32, 32],
        "versions": {"ngvae-pyro": "0.1.0", "torch": "2.15.0"},
        **tables,
    }
    return parse(SavedRun, values, "test")


class Page(HTMLParser):
    """A parsed page: fails on tags that do not match."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.open, self.parts, self.tables = [], [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), attrs
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if "style" not in self.open:
            self.parts.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def row(self, name):
        """Cells of the first row whose heading starts so."""
        return next(row for table in self.tables for row in table if row[0].startswith(name))


def said_by(tmp_path, script, frames, milliseconds):
    """What a script of a page with frames leaves as the JSON array that is its body."""
    wrapper = tmp_path / "wrapper.html"
    page = f'<!DOCTYPE html><meta charset="utf-8"><script>{script}</script><body>{frames}'
    wrapper.write_text(page, encoding="utf-8")
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900"),
        *(f"--virtual-time-budget={milliseconds}", "--dump-dom", wrapper.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(html.unescape(re.search(r"<body>(\[.*\])", done.stdout)[1]))
