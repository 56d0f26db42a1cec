"""Without the packages of one part the others work, and a line says what is missing."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import ngvae_pyro as ng
from ngvae_pyro.errors import UserError
from ngvae_pyro.extras import EXTRAS, needed

PACKAGE = Path(ng.__file__).parent
# What the distributions need.
CORE = ("numpy", "pyro-ppl", "torch")
# What comes with a package of an extra under a name of its own.
BROUGHT = {"arviz_stats": "arviz", "pydantic_core": "pydantic", "typing_extensions": "pydantic"}
# Beginning of a program in which some modules are not found.
BLOCK = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = name.partition(".")[0] not in names
        return PathFinder.find_spec(name, path, target) if found else None

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def normal(name):
    return name.lower().replace("_", "-").replace(".", "-")


def closure(names):
    """Packages with all that they require in turn."""
    found, left = set(), [normal(name) for name in names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            for requirement in map(Requirement, requires(name) or ()):
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    left.append(normal(requirement.name))
    return found


def modules_beside(packages):
    """The installed modules that are neither this package's nor of some others or their needs."""
    allowed = {*closure(packages), "ngvae-pyro"}
    return {
        module
        for module, owners in packages_distributions().items()
        if not {normal(owner) for owner in owners} & allowed
    }


def without(names, code, *words):
    """The outcome of a program to which some modules are not there."""
    program = f"names = {sorted(names)}\n{BLOCK}\n{textwrap.dedent(code)}"
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_distributions_need_torch_pyro_and_numpy_alone():
    others = modules_beside(CORE)
    assert {"matplotlib", "pandas", "pydantic", "rich", "scipy"} <= others
    done = without(
        others,
        """
        import torch
        import ngvae_pyro
        from ngvae_pyro import counts, distributions, kernels, pixels

        prior = distributions.NormalGammaPrior(0.1, slab=(1.0, 1e-4), spike=(100.0, 100.0))
        assert prior.log_prob(prior.sample((5,))).isfinite().all()
        assert kernels.Epanechnikov(torch.zeros(3), torch.ones(3)).rsample().shape == (3,)
        assert counts.RelaxedPoisson(torch.ones(3), 0.1).rsample().shape == (3,)
        pixels.GaussianPixels(torch.zeros(2, 1, 4, 4), torch.tensor(0.1)).sample()
        try:
            ngvae_pyro.fit
        except ngvae_pyro.UserError as error:
            print(error)
        """,
    )
    line = r"models and their training need \w+: pip install 'ngvae-pyro\[train\]'\n"
    assert re.fullmatch(line, done.stdout), done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pair_is_trained_without_figures_metrics_and_the_command_line():
    """The rotation at the end of a training included."""
    done = without(
        modules_beside([*CORE, *EXTRAS["train"].packages.values()]),
        """
        import torch
        import ngvae_pyro as ng

        images = torch.rand(40, 1, 8, 8)
        model = ng.load_model("normal_gamma", (1, 8, 8), latent_size=2)
        guide = ng.load_guide("relaxed", model)
        ng.fit(model, guide, images, ng.FitSpec(steps=3, batch_size=8), progress=False)
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "extra, module, command",
    [
        pytest.param("arviz", "h5netcdf", "train", marks=pytest.mark.slow),
        ("cli", "typer", "train"),
        pytest.param("metrics", "sklearn", "evaluate", marks=pytest.mark.slow),
        ("metrics", "sklearn", "train"),
        ("plots", "matplotlib", "train"),
    ],
)
def test_the_command_line_says_in_a_line_what_is_missing(tmp_path, extra, module, command):
    """Before it does anything."""
    run = tmp_path / "run"
    words = {
        "train": ["normal_gamma", "relaxed", "--steps", "2", "--out", run],
        "evaluate": [run],
    }
    done = without(
        {module},
        "from ngvae_pyro.__main__ import main\nmain()",
        command,
        *words[command],
    )
    need = f"{EXTRAS[extra].of} {EXTRAS[extra].packages[module]}"
    line = f"ngvae: {need}: pip install 'ngvae-pyro[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", sorted({m for e in EXTRAS.values() for m in e.packages}))
def test_a_missing_package_is_a_line_that_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    for name, extra in EXTRAS.items():
        if module in extra.packages:
            line = f"{extra.of} {extra.packages[module]}: pip install 'ngvae-pyro[{name}]'"
            with pytest.raises(UserError) as caught, needed(name):
                __import__(module)
            assert str(caught.value) == line


def test_what_is_missing_of_another_extra_is_named_with_that(monkeypatch):
    """As where arviz is installed, and the matplotlib that it draws with is not."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"figures need matplotlib: .*\[plots\]"), needed("arviz"):
        __import__("matplotlib")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), needed("arviz"):
        __import__("no_such_module")


def test_pictures_and_tables_are_asked_for_when_they_are_used(small_pair, tmp_path, monkeypatch):
    fit = ng.fit(*small_pair(), torch.rand(8, 3, 32, 32), steps=1, progress=False)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"tables need pandas: .*\[tables\]"):
        fit.history_table()
    with pytest.raises(UserError, match=r"need pillow: .*\[images\]"):
        ng.load_data(tmp_path)
    with pytest.raises(UserError, match=r"need torchvision: .*\[images\]"):
        ng.load_data("cifar10", download=True)


def imports(tree, within=()):
    """All imports, each as the module's first name and what it stands within."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name.partition(".")[0], within) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0], within
        elif isinstance(node, (ast.With, ast.If)):
            heads = node.items if isinstance(node, ast.With) else [node.test]
            yield from imports(node, (*within, *map(ast.unparse, heads)))
        else:
            yield from imports(node, within)


def test_what_is_optional_is_imported_as_such():
    core = {*sys.stdlib_module_names, "numpy", "pyro", "torch", "ngvae_pyro"}
    seen = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for module, within in imports(ast.parse(path.read_text())):
            if module not in core and "TYPE_CHECKING" not in within:
                module = BROUGHT.get(module, module)
                extras = [name for name, extra in EXTRAS.items() if module in extra.packages]
                stands = {f"needed({name!r})" for name in extras} & set(within)
                assert stands, f"{path.name}: {module}"
                seen.add(module)
    assert seen == {module for extra in EXTRAS.values() for module in extra.packages}


def test_arviz_is_imported_by_several_processes_at_once(tmp_path):
    """Another one has just renamed the file that 0.23 renames on the first import of a day."""
    code = """
import pathlib
rename = pathlib.Path.replace
late = []

def replace(path, target):
    if path.name.startswith("daily_warning") and len(late) < 2:
        late.append(path)
        path.unlink()
    return rename(path, target)

pathlib.Path.replace = replace
from ngvae_pyro import _arviz
assert _arviz.az.__name__ == "arviz" and callable(_arviz.az.from_netcdf)
print(len(late))
"""
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
    # The successor of 0.23 writes no such file.
    assert (done.returncode, done.stderr) == (0, "") and done.stdout in ("0\n", "2\n")
