"""What the distribution says of itself."""

import configparser
import os
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import ngvae_pyro
from ngvae_pyro.extras import EXTRAS

ROOT = os.path.dirname(os.path.dirname(__file__))


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def setup():
    config = configparser.ConfigParser()
    config.read_string(read("setup.cfg"))
    return config


def pythons():
    """The Pythons that the classifiers name."""
    return re.findall(r"Python :: (3\.\d+)$", setup()["metadata"]["classifiers"], re.MULTILINE)


def requirements(text):
    return [Requirement(line) for line in text.split("\n") if line]


def direct():
    """The requirements of setup.cfg, by name; of all extras too, which agree."""
    config = setup()
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    found = {}
    for requirement in (requirement for text in texts for requirement in requirements(text)):
        if requirement.name != config["metadata"]["name"]:  # an extra of extras
            assert found.setdefault(requirement.name, requirement) == requirement
    return found


def pins(path):
    """The lines of a constraints file: one version each."""
    found = [Requirement(line) for line in read(path).splitlines() if not line.startswith("#")]
    for pin in found:
        assert [clause.operator for clause in pin.specifier] == ["=="], str(pin)
    return found


def version(requirement, operator):
    """The one version that follows an operator."""
    (found,) = [c.version for c in requirement.specifier if c.operator == operator]
    return Version(found)


def test_every_variant_folder_is_a_package_of_the_wheel():
    config = setup()
    packages = config["options"]["packages"].split()
    rooms = sorted(path.parent for path in Path(ROOT, "ngvae_pyro").glob("**/__init__.py"))
    own = [".".join(room.relative_to(ROOT).parts) for room in rooms]
    assert packages == [*own, "ngvae_pyro.models", "ngvae_pyro.guides"]
    assert "*.toml" in config["options.package_data"]["ngvae_pyro.models"]
    assert "*.toml" in config["options.package_data"]["ngvae_pyro.guides"]
    assert "templates/*.j2" in config["options.package_data"]["ngvae_pyro.report"]


def test_changelog_citation_and_readme_follow_the_package():
    assert f"## {ngvae_pyro.__version__}" in read("CHANGELOG.md")
    citation = read("CITATION.cff")
    assert f"\nversion: {ngvae_pyro.__version__}\n" in citation
    assert f"\nlicense: {setup()['metadata']['license']}\n" in citation
    readme = read("README.md")
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert link.startswith("http") or os.path.exists(os.path.join(ROOT, link)), link


def test_public_names_can_be_imported():
    for name in ngvae_pyro.__all__:
        assert getattr(ngvae_pyro, name) is not None


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = {name: version(requirement, ">=") for name, requirement in direct().items()}
    oldest = pins("constraints-oldest.txt")
    assert {pin.name: version(pin, "==") for pin in oldest} == bounds
    assert len(oldest) == len(bounds) and not any(pin.marker for pin in oldest)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", pythons())
def test_each_python_has_one_pin_of_each_requirement(python, platform):
    there = {"python_version": python, "sys_platform": platform}
    here = [p for p in pins("constraints.txt") if p.marker is None or p.marker.evaluate(there)]
    versions = {pin.name: version(pin, "==") for pin in here}
    assert len(versions) == len(here), "at most one"
    for name, requirement in direct().items():
        assert requirement.specifier.contains(versions[name]), name


def test_the_extras_are_those_of_the_package_and_an_installation_has_all_of_them():
    config = setup()
    declared = config["options.extras_require"]
    for name, extra in EXTRAS.items():
        assert [one.name for one in requirements(declared[name])] == sorted(extra.packages.values())
    (every,) = requirements(declared["all"])
    # Clusters, the files of other packages and logs elsewhere are nothing that the README uses.
    usual = set(EXTRAS) - {"mlflow", "parquet", "ray", "tensorboard"}
    assert every.extras == usual
    optional = {one.name for name in usual for one in requirements(declared[name])}
    plain = {one.name for one in requirements(config["options"]["install_requires"])}
    assert plain == optional | {"numpy", "pyro-ppl", "torch"}


def test_the_workflow_has_the_pythons_of_the_classifiers():
    workflow = read(".github", "workflows", "test.yml")
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r'"(.*?)"', matrix) == pythons()
    assert setup()["options"]["python_requires"] == f">={pythons()[0]}"
    single = re.findall(r'python-version: "(.*)"', workflow)
    assert set(single) <= set(pythons())


def test_what_make_test_leaves_out_runs_every_day():
    workflow = read(".github", "workflows", "test.yml")
    _, _, daily = workflow.partition("  all:\n    if: github.event_name == 'schedule'\n")
    assert re.search(r"schedule:\n    - cron: \"\d+ \d+ \* \* \*\"\n", workflow)
    assert "make test-all" in daily.partition("\n\n")[0]
    makefile = read("Makefile")
    for target, left_out in (("test", ' -m "not slow"'), ("test-all", "")):
        recipe = rf"^{target}: .*\n\t.* -m pytest \$\(PARALLEL\)(.*)$"
        assert re.findall(recipe, makefile, re.MULTILINE) == [left_out]


def test_actions_are_pinned_by_commit():
    used = re.findall(r"uses: (.*)", read(".github", "workflows", "test.yml"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
