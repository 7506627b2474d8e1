"""Imports point one way.

Each folder names here what it may import; what is not named is forbidden, at any depth.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

# From the bottom up. Every folder may also import itself.
MAY_IMPORT = {
    "speaker.common": {"torch", "filelock", "pydantic"},
    "speaker.config": {"speaker.common"},
    "speaker.data": {
        "speaker.common", "speaker.config",
        "torch", "safetensors", "tqdm", "matplotlib",
    },
    "speaker.model": {"speaker.common", "speaker.config", "torch", "numpy", "safetensors"},
    "speaker.sources": {
        "speaker.common", "speaker.data",
        "torch", "numpy", "tqdm", "av", "soxr", "requests", "urllib3",
    },
    "speaker.training": {
        "speaker.common", "speaker.config", "speaker.data", "speaker.model",
        "torch", "safetensors", "tqdm",
    },
    "speaker.prediction": {
        "speaker.common", "speaker.data", "speaker.model", "speaker.sources", "speaker.training",
        "torch", "tqdm", "pyarrow",
    },
    "speaker": {"speaker"},  # __main__
    "experiments.context": {"speaker", "tqdm"},
    "experiments.urls": {"speaker", "sqlalchemy"},
    "experiments.tracking": {
        "experiments.context", "experiments.urls", "speaker",
        "mlflow", "sqlalchemy",
    },
    "experiments.outages": {"experiments.tracking", "speaker", "tqdm"},
    "experiments.registry": {
        "experiments.tracking", "experiments.urls", "speaker",
        "mlflow", "torch", "numpy", "filelock",
    },
    "experiments.proposals": {"speaker", "optuna", "numpy", "scipy", "torch"},
    "experiments.analysis": {
        "experiments.proposals", "experiments.tracking", "speaker",
        "mlflow", "numpy", "scipy", "matplotlib",
    },
    "experiments.report": {
        "experiments.analysis", "experiments.proposals", "experiments.tracking", "speaker",
        "matplotlib", "mlflow", "numpy",
    },
    "experiments.tracked_training": {
        "experiments.context", "experiments.outages", "experiments.tracking", "speaker", "tqdm",
    },
    "experiments.promotion": {
        "experiments.analysis", "experiments.registry", "experiments.report",
        "experiments.tracked_training", "experiments.tracking", "speaker", "mlflow",
    },
    "experiments.replay": {
        "experiments.analysis", "experiments.context", "experiments.registry",
        "experiments.tracking", "speaker", "mlflow", "tqdm",
    },
    "experiments.study": {
        "experiments.context", "experiments.outages", "experiments.urls", "experiments.tracking",
        "experiments.tracked_training", "experiments.proposals", "speaker",
        "optuna", "sqlalchemy", "filelock", "tqdm",
    },
    "experiments.engines": {
        "experiments.context", "experiments.proposals", "experiments.study",
        "experiments.tracked_training", "experiments.urls", "speaker",
        "numpy", "optuna", "ray", "torch", "tqdm",
    },
    "experiments.transfer": {
        "experiments.proposals", "experiments.registry", "experiments.study",
        "experiments.tracking", "experiments.urls", "speaker", "mlflow", "optuna",
    },
    "experiments.upkeep": {
        "experiments.analysis", "experiments.proposals", "experiments.registry",
        "experiments.study", "experiments.tracking", "experiments.urls", "speaker",
        "mlflow", "optuna",
    },
    "experiments": {"experiments", "speaker"},  # __main__, verbs and model_folders
    "search": {"experiments", "speaker"},
    "train_trial": {"experiments", "speaker", "tqdm"},
}  # fmt: skip


def room(module: str) -> str:
    """Return the most specific entry above that a module belongs to."""
    return max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len)


def imports(source: str) -> set[str]:
    """Return the modules that a file imports, wherever in it;
    importing by a name that cannot be read is refused.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where the arrows point"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert name not in {"__import__", "import_module"}, (
                "this test cannot read what is imported so"
            )
    return found


def forbidden(module: str, source: str) -> set[str]:
    """Return what a file imports that its folder may not."""
    allowed = {*MAY_IMPORT[room(module)], room(module)}
    return {
        name
        for name in imports(source)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{each}.") for each in allowed)
    }


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(
    [
        *(ROOT / "speaker").rglob("*.py"),
        *(ROOT / "experiments").rglob("*.py"),
        ROOT / "search.py",
        ROOT / "train_trial.py",
    ]
)
FOLDERS = sorted({path.parent for path in FILES if path.parent != ROOT})


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_what_its_folder_may(path: Path) -> None:
    assert not forbidden(module_of(path), path.read_text())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_says_its_sentence_and_imports_nothing(folder: Path) -> None:
    body = ast.parse((folder / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
@pytest.mark.parametrize("depth", ["new", "new.deeper"])
def test_a_planted_import_is_seen_in_every_folder(folder: Path, depth: str) -> None:
    """What no folder may import, and for each folder what stands above it."""
    module = f"{module_of(folder)}.{depth}"
    for planted in (
        "import requests_html",
        "def late():\n    from search import main",
        "import tests.helpers",
    ):
        assert forbidden(module, planted)
    if module.startswith("speaker"):
        for above in ("optuna", "mlflow.entities", "experiments.context", "sqlalchemy"):
            assert forbidden(module, f"def late():\n    import {above}") == {above}
    if module.startswith("experiments.tracking"):
        assert forbidden(module, "from experiments.study.trial import run_trial")
    if module.startswith("speaker.data"):
        assert forbidden(module, "from speaker.sources import demo")


def test_every_dependency_between_folders_is_used() -> None:
    """What a folder may import and does not is a door that nobody watches."""
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for path in FILES:
        used[room(module_of(path))] |= imports(path.read_text())
    unused = {
        f"{name} -> {each}"
        for name, allowed in MAY_IMPORT.items()
        for each in allowed
        if not any(f"{found}.".startswith(f"{each}.") for found in used[name])
    }
    assert not unused


def test_training_one_point_needs_no_optuna() -> None:
    code = (
        "import sys; sys.modules['optuna'] = None\nimport train_trial, experiments.context, "
        "experiments.tracking.store, speaker.training.train"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 40
