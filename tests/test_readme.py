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
    """Return the files and folders in the README's tree: after a folder's sentence its modules,
    without their endings, or its other files.
    """
    (tree,) = (block for kind, block in BLOCKS if not kind)
    paths = set()
    for entry in re.sub(r"\n +", " ", tree).splitlines():
        name, _, words = entry.partition(" ")
        paths.add(name)
        if name.startswith(("speaker/", "experiments/", "benchmarks/")):
            _, _, modules = words.partition(":")
            paths |= {
                f"{name}{module.strip()}.py" for module in modules.split(",") if module.strip()
            }
        if name == "cluster/":
            paths |= {f"{name}{file.strip()}" for file in words.partition(":")[2].split(",")}
    return paths


def test_the_tree_is_the_tree() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    shown = [
        path
        for path in tracked
        if not path.startswith((".", "tests/", "mlruns/", "benchmarks/results/"))
    ]
    files = {path for path in shown if not path.endswith("__init__.py")}
    folders = {f"{path.rpartition('/')[0]}/" for path in shown if "/" in path}
    assert listed() == files | folders | {"mlruns/", "tests/"}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python ")])
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
    assert setups[1].endswith(" && python -m pytest -n 3")
    assert "\npython -m pytest -n 3\n" in ci


def test_requirements_are_pinned_and_say_who_needs_them() -> None:
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-ray.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert line.startswith("-r ") or re.fullmatch(r"[a-z\[\]-]+==[\d.]+ +# .+", line), line


def test_the_demo_is_as_described() -> None:
    assert f"{SPEAKERS} invented speakers" in README
