"""The README is true: its tree names every file, its commands parse, and CI runs what it says."""

import re
import shlex
import subprocess

import pytest

import benchmarks.gpu
import experiments.__main__
import search
import speaker.__main__
import train_trial
from speaker.sources.demo import SPEAKERS
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
PARSERS = {
    "search.py": search.parser,
    "train_trial.py": train_trial.parser,
    "-m speaker": speaker.__main__.parser,
    "-m experiments": experiments.__main__.parser,
    "-m benchmarks.gpu": benchmarks.gpu.parser,
}


def listed() -> set[str]:
    """Return the paths in the README's file tree."""
    (tree,) = (block for kind, block in BLOCKS if not kind)
    paths, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        paths.add(folder + name if line.startswith(" ") else name)
    return paths


def test_the_tree_is_the_tree() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folded = {"tests/", "mlruns/", "benchmarks/results/"}
    real = {path for path in tracked if not path.startswith((".", *folded)) and not path.endswith("__init__.py")}
    real |= {path.partition("/")[0] + "/" for path in tracked if "/" in path and not path.startswith(".")}
    assert listed() == real


@pytest.mark.parametrize("line", [line for line in COMMANDS if "venv" not in line])
def test_every_command_parses(line: str) -> None:
    (name,) = (name for name in PARSERS if line.startswith(f"python {name}"))
    PARSERS[name]().parse_args(shlex.split(line.removeprefix(f"python {name}")))


def test_ci_runs_what_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    setups = [line for line in COMMANDS if "venv" in line]
    assert len(setups) == 2
    for line in setups:
        assert re.search(r"pip install -r (\S+)", line)
        for requirement in re.findall(r"-r (\S+)", line):
            assert f"-r {requirement}" in ci
    assert setups[1].endswith("python -m pytest")
    assert "\npython -m pytest\n" in ci


def test_requirements_are_pinned_and_say_who_needs_them() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert line.startswith("-r ") or re.fullmatch(r"[a-z\[\]-]+==[\d.]+ +# .+", line), line


def test_the_demo_is_as_described() -> None:
    assert f"{SPEAKERS} invented speakers" in README
