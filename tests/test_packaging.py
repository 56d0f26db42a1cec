"""What the distribution says of itself."""

import configparser
import os
import re

import ngvae_pyro

ROOT = os.path.dirname(os.path.dirname(__file__))


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def test_every_variant_folder_is_a_package_of_the_wheel():
    config = configparser.ConfigParser()
    config.read_string(read("setup.cfg"))
    packages = config["options"]["packages"].split()
    assert packages == ["ngvae_pyro", "ngvae_pyro.models", "ngvae_pyro.guides"]
    assert "*.toml" in config["options.package_data"]["ngvae_pyro.models"]
    assert "*.toml" in config["options.package_data"]["ngvae_pyro.guides"]
    assert "templates/*.j2" in config["options.package_data"]["ngvae_pyro"]


def test_changelog_and_readme_follow_the_package():
    assert f"## {ngvae_pyro.__version__}" in read("CHANGELOG.md")
    readme = read("README.md")
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert link.startswith("http") or os.path.exists(os.path.join(ROOT, link)), link


def test_public_names_can_be_imported():
    for name in ngvae_pyro.__all__:
        assert getattr(ngvae_pyro, name) is not None
