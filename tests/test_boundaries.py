"""The dependencies point one way: search.py, train_trial.py -> experiments -> speaker."""

import ast
from pathlib import Path

import pytest

from tests.helpers import ROOT

SPEAKER = sorted((ROOT / "speaker").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, wherever in it, by name or through importlib."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide where the arrows point"
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert name not in {"__import__", "import_module"}, f"{path.name} imports by a name this test cannot read"
    return found


@pytest.mark.parametrize("path", SPEAKER, ids=lambda path: path.name)
def test_speaker_knows_no_search_and_no_tracker(path: Path) -> None:
    assert not imports(path) & {"optuna", "mlflow", "experiments", "search", "train_trial", "sqlalchemy"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_only_some_files_know_optuna_or_mlflow(path: Path) -> None:
    found = imports(path)
    if path.name not in {"space.py", "study.py", "trial.py", "progress.py"}:
        assert "optuna" not in found
    if path.name not in {"tracking.py", "registry.py", "leaderboard.py", "served_model.py"}:
        assert "mlflow" not in found
    assert not found & {"search", "train_trial"}


def test_training_one_point_needs_no_optuna() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "import train_trial, experiments.context, experiments.tracking.store, speaker.training.train"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_layers_are_not_empty() -> None:
    assert len(SPEAKER) > 10
    assert len(EXPERIMENTS) > 5
