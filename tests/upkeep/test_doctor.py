"""The doctor finds what is planted, calls it by its name, invents nothing, and mends it without touching anything else."""

import hashlib
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import ViewType

from experiments.study.locks import ALIVE
from experiments.upkeep.doctor.checks import examine, mend
from experiments.upkeep.doctor.findings import Finding
from experiments.upkeep.doctor.survey import Place
from tests.transfer.places import storage_in, store_in
from tests.upkeep.damages import DAMAGES, Damage, Scene

FOUND = [each for each in DAMAGES if not each.is_mended]
MENDED = [each for each in DAMAGES if each.is_mended]
TOGETHER = (
    "ended-run-open", "stranded", "run-doubled", "run-of-no-trial", "parent-open", "checkpoint-left", "pack-half",
    "model-lost-of-version", "config-lost", "lock-of-no-run", "version-changed", "promotion-half",
)  # fmt: skip
KNOWN = Counter({("interrupted", "open #1"): 1})  # what is to be known of the template


def look(state: Path) -> list[Finding]:
    return examine(place_of(state))


def place_of(state: Path) -> Place:
    return Place(store_in(state), storage_in(state), state)


def counted(findings: list[Finding]) -> Counter[tuple[str, str]]:
    return Counter((each.kind, each.where) for each in findings)


def runs_in(scene: Scene) -> set[str]:
    return {run.info.run_id for run in scene.store.runs("", ViewType.ALL)}


def is_of_who_mends(path: Path) -> bool:
    """Tell whether a file is a lock that is taken for mending."""
    return path.suffix == ".lock" and (path.stem == ALIVE or path.name.startswith("."))


def everything(state: Path) -> set[str]:
    """All rows of both databases, and all files, without the locks of who looks."""
    kept = {
        f"{path.relative_to(state)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in state.rglob("*")
        if path.is_file() and path.suffix != ".db" and not is_of_who_mends(path)
    }
    for name in ("mlflow", "optuna"):
        with closing(sqlite3.connect(state / f"{name}.db")) as opened:
            for (table,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
                rows = opened.execute(f"SELECT * FROM {table}")  # noqa: S608
                kept |= {f"{name}.{table} {row!r}" for row in rows}
    return kept


@pytest.mark.parametrize("damage", FOUND, ids=lambda damage: damage.name)
def test_what_is_planted_is_found(scene: Scene, damage: Damage) -> None:
    damage.plant(scene)
    before = everything(scene.state)
    found = look(scene.state)
    assert sorted(kind for kind, _ in counted(found) - KNOWN) == sorted(damage.kinds)
    assert not any(each.mend for each in found)
    assert everything(scene.state) == before, "looking changes nothing"


@pytest.mark.parametrize("damage", MENDED, ids=lambda damage: damage.name)
def test_what_is_planted_is_found_and_mended(scene: Scene, damage: Damage) -> None:
    """That alone, and nothing else is touched."""
    planted_at = str(damage.plant(scene)).removeprefix(f"{scene.state}/")
    before, runs = everything(scene.state), runs_in(scene)
    mended, left = mend(place_of(scene.state))
    assert [each.kind for each in mended] == list(damage.kinds)
    assert counted(left) == KNOWN
    words = {planted_at} | (runs_in(scene) - runs)
    changed = before ^ everything(scene.state)
    assert changed
    assert {line for line in changed if not any(word in line for word in words)} == set()


def test_a_healthy_state_is_left_alone(scene: Scene) -> None:
    before = everything(scene.state)
    assert mend(place_of(scene.state)) == ([], look(scene.state))
    assert counted(look(scene.state)) == KNOWN
    assert everything(scene.state) == before


def test_looking_at_what_can_be_mended_changes_nothing(scene: Scene) -> None:
    """Many damages at once are each found, and mended in as many rounds as they take."""
    together = [each for each in MENDED if each.name in TOGETHER]
    for damage in together:
        damage.plant(scene)
    before = everything(scene.state)
    kinds = Counter(kind for each in together for kind in each.kinds)
    found = look(scene.state)
    assert Counter(kind for kind, _ in (counted(found) - KNOWN).elements()) == kinds
    assert everything(scene.state) == before
    mended, left = mend(place_of(scene.state))
    assert Counter(each.kind for each in mended) == kinds
    assert counted(left) == KNOWN
