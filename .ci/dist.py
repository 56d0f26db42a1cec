"""Builds sdist and wheel in dist/, and checks what is in them and that they work.

    python .ci/dist.py

They hold what they should and nothing else, twine finds their metadata fit for an index, and each
of them, installed in an environment of its own, runs what the README shows, with few steps and
outside of the repository. An environment takes some GB while it is there, for torch.

The sdist is the repository as git has it, so untracked files fail too. The wheel is the package
with its templates and variants. The times in it are that of the commit, so that the same commit
and the same setuptools give the same wheel.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
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


def in_few_steps(example: str) -> str:
    """The first Python of the README, with images and without the hours."""
    images = "import numpy as np\nimages = np.random.default_rng(0).random((100, 16, 16))\n"
    # What is trained at length there has some steps here.
    example, count = re.subn(r"NGVAE\((.*?)\)", r"NGVAE(\1, steps=20)", example)
    if count != 1:
        sys.exit(f"README.md: expected an NGVAE in the first example, got {count}")
    return f"{images}np.savez('my_images.npz', imgs=images)\n{example}"


def commands(readme: str) -> list[list[str]]:
    """The words of the command lines of the README, with few steps."""
    found = [line.split("#")[0].split() for line in re.findall(r"^\$ (.*)$", readme, re.MULTILINE)]
    trains = [words[1:] for words in found if words[0].endswith("/ngvae")]
    if not trains:
        sys.exit("README.md: expected a command line of ngvae")
    few = ["--steps", "20"]
    sprites = ["train", "normal_gamma", "relaxed", "--data", "sprites", "--set", "data.size=500"]
    return [
        ["variants"],
        *([*words, *few] for words in trains),
        # As `make demo` does.
        [*sprites, *few, "--out", "runs/demo"],
        ["inspect", "runs/demo"],
    ]


def smoke(archive: Path) -> None:
    """Install an archive in an empty environment, and run with it what the README shows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[0]
    # What is installed, and not what lies about.
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:

        def call(program: str, *words: object) -> None:
            command = [Path(folder, "venv", "bin", program), *words]
            subprocess.run(command, cwd=folder, env=environment, check=True)

        subprocess.run([sys.executable, "-m", "venv", Path(folder, "venv")], check=True)
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        call("python", *pip, "--constraint", ROOT / "constraints.txt", archive)
        call("python", "-m", "pip", "check")
        call("python", "-c", in_few_steps(example))
        for words in commands(readme):
            call("ngvae", *words)
    print(f"{archive.name}: installed, and runs what the README shows", flush=True)


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

    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel], check=True)
    for archive in (wheel, sdist):
        smoke(archive)


if __name__ == "__main__":
    main()
