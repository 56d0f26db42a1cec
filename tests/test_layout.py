"""The house: the order of its floors, and that a guide is added as CONTRIBUTING.md says."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ngvae_pyro import _doors
from ngvae_pyro.guide import GUIDES, Guide

ROOT = Path(__file__).parent.parent


def test_rooms_import_only_rooms_below_them(monkeypatch):
    linter = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    monkeypatch.chdir(ROOT)
    assert linter.lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_only_the_registry_knows_guides_by_name():
    known = {guide.__name__ for guide in GUIDES.values()}
    for room in (ROOT / "ngvae_pyro").rglob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(room.read_text())) if isinstance(n, ast.Name)}
        assert room.name == "guide.py" or not names & known, room


def test_modules_are_found_under_their_older_names():
    for old, new in _doors.MOVED.items():
        found, home = (importlib.import_module(f"ngvae_pyro.{name}") for name in (old, new))
        assert found is home and home.__spec__.name == f"ngvae_pyro.{new}", old


def followed(page, folder):
    """What a page says is done to a copy of the package: blocks of code under bold steps."""
    touched = []
    steps = r"`([\w/.]+)` above `(.+?)`:\n\n|below `( +.+?)`:\n\n|the file `(.+?)`.*\n\n"
    for step in re.finditer(rf"(?:{steps})```\w+\n(.*?)```", page, re.DOTALL):
        path, above, below, new, code = step.groups()
        file = folder / (path or new or touched[-1])
        if new:
            file.write_text(code)
        else:
            text = file.read_text()
            anchor = f"\n{above}" if above else f"\n{below}\n"
            assert text.count(anchor) == 1, anchor
            added = f"\n{code}\n{anchor}" if above else f"{anchor}{code}"
            file.write_text(text.replace(anchor, added))
        touched.append(str(file.relative_to(folder)))
    return touched


PROGRAM = """
import torch
import ngvae_pyro as ng
from ngvae_pyro import variants
from ngvae_pyro.specs import MLPSpec

assert "laplace" in variants.names("guides")
data = ng.sprites(60)
small = MLPSpec(width=8, depth=1)
model = ng.load_model("gaussian", data, latent_size=3, decoder=small)
guide = ng.load_guide("laplace", model, encoder=small)
fit = ng.fit(model, guide, data, steps=20, batch_size=10, device="cpu", progress=False)
assert type(fit.guide).__name__ == "LaplaceGuide" and fit.guide.spec.label == "Laplace VAE"
print(fit.history[0]["loss"] > fit.history[-1]["loss"])
"""


@pytest.mark.slow
def test_a_guide_is_added_as_the_page_says(tmp_path):
    for part in ("ngvae_pyro", "models", "guides", "tests", "setup.cfg"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    touched = followed((ROOT / "CONTRIBUTING.md").read_text(), tmp_path)
    assert touched == [
        *("ngvae_pyro/specs/pair.py", "ngvae_pyro/specs/pair.py"),
        *("ngvae_pyro/guide.py", "ngvae_pyro/guide.py", "ngvae_pyro/guide.py"),
        "guides/laplace.toml",
    ]
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(tmp_path), "PATH": ""}, "timeout": 300}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, **options
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    # The tests of every pair find it by themselves.
    only = ["tests/test_pairs.py", "-k", "laplace and not agrees", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *only]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0 and re.search(r"\b[3-9] passed", done.stdout), done.stdout


def test_every_guide_says_what_it_is():
    for guide in GUIDES.values():
        assert guide.__doc__ and guide.p_is and issubclass(guide, Guide)
