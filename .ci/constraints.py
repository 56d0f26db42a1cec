"""Writes constraints.txt: every version of an environment that works, on each Python.

    python .ci/constraints.py python3.11 python3.12 python3.13 > constraints.txt

Each interpreter, oldest first, resolves the package with all its extras, installing nothing. A
version that not all of them choose has a marker, and so has what torch asks for on Linux alone.
Run it on Linux. PIP_CONSTRAINT=file holds versions back.
"""

import configparser
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# The versions of all that the package and its extras need, as continuous integration has them.
# Written by .ci/constraints.py, which says how; not edited by hand.
"""
# What torch brings on Linux, and nothing else needs.
LINUX = ("cuda-", "nvidia-", "triton")


def resolved(python: str) -> tuple[str, dict[str, str]]:
    """The version of an interpreter, "3.11", and the versions of all that it would install."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = ",".join(config["options.extras_require"])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        command = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--disable-pip-version-check", "--ignore-installed", "--report", "-"]
        # Not what pip says besides, which is of the machine that it runs on.
        done = subprocess.run(
            [*command, f"{ROOT}[{extras}]"], check=True, stdout=subprocess.PIPE, text=True
        )
    report = json.loads(done.stdout)
    found = {}
    for item in report["install"]:
        if "dir_info" not in item["download_info"]:
            name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
            found[name] = item["metadata"]["version"]
    return report["environment"]["python_version"], found


def marker(pythons: list[str], of: list[str]) -> str:
    """What is true of some of the Pythons alone, in their order; empty for all of them."""
    if pythons == of:
        return ""
    if pythons == of[-len(pythons) :]:
        return f"python_version >= '{pythons[0]}'"
    if pythons == of[: len(pythons)]:
        return f"python_version <= '{pythons[-1]}'"
    return " or ".join(f"python_version == '{python}'" for python in pythons)


def pins(of_pythons: dict[str, dict[str, str]]) -> list[str]:
    """A line for every version of every name."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for python, versions in of_pythons.items():
        for name, version in versions.items():
            found[name][version].append(python)
    lines = []
    for name in sorted(found):
        for version, pythons in found[name].items():
            markers = [marker(pythons, list(of_pythons))]
            if name.startswith(LINUX):
                markers.append("sys_platform == 'linux'")
            wanted = " and ".join(f"({m})" if " or " in m else m for m in markers if m)
            lines.append(f"{name}=={version}" + (f"; {wanted}" if wanted else ""))
    return lines


if __name__ == "__main__":
    print(HEAD + "\n".join(pins(dict(map(resolved, sys.argv[1:])))))
