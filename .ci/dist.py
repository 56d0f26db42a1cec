"""Builds sdist and wheel in dist/, and checks that they hold what they should and nothing else.

    python .ci/dist.py

The sdist is the repository as git has it, so untracked files fail too. The wheel is the package
with its templates and variants. The times in it are that of the commit, so that the same commit
and the same setuptools give the same wheel.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What setuptools adds to the sdist.
EGG_INFO = ["PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt"]
EGG_INFO += ["top_level.txt"]
DIST_INFO = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"]


def git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def check(path: Path, found: set[str], expected: set[str]) -> None:
    if wrong := sorted(found ^ expected):
        lines = [f"{'missing' if name in expected else 'unexpected'}: {name}" for name in wrong]
        sys.exit("\n".join([f"{path.name} does not hold what it should:", *lines]))
    print(f"{path.name}: {len(found)} files, as expected")


def main() -> None:
    dist, tracked = ROOT / "dist", set(git("ls-files"))
    shutil.rmtree(dist, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", dist, ROOT],
        env={**os.environ, "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct")[0]},
        check=True,
    )

    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        found = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    egg_info = {f"ngvae_pyro.egg-info/{name}" for name in EGG_INFO}
    check(sdist, found, tracked | egg_info | {"PKG-INFO"})

    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    package = {name for name in tracked if name.startswith("ngvae_pyro/")}
    variants = {f"ngvae_pyro/{name}" for name in tracked if name.startswith(("models/", "guides/"))}
    metadata = {f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/{name}" for name in DIST_INFO}
    check(wheel, found, package | variants | metadata)


if __name__ == "__main__":
    main()
