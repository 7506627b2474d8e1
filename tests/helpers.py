"""What several tests need: corpora on disk, small points, the program as a user starts it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch

from experiments.proposals.attributes import RUN_ID
from experiments.proposals.presets import homework_points
from experiments.proposals.space import HOMEWORK
from experiments.study.settings import SearchSettings
from experiments.study.storage import open_storage
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.common.seeding import generator
from speaker.config import TrialConfig
from speaker.training.losses.cross_entropy import CrossEntropy

ROOT = Path(__file__).resolve().parents[1]
TINY = TrialConfig(
    d_model=16,
    nhead=2,
    dim_feedforward=32,
    batch_size=8,
    segment_len=24,
    steps=12,
    warmup_steps=2,
    valid_every=4,
)
# A search of four short trials, the homework's points first.
PLAN = SearchSettings(
    "s",
    HOMEWORK,
    TINY.replace(steps=4, warmup_steps=1, valid_every=2),
    0,
    "random",
    "none",
    4,
    None,
    homework_points(HOMEWORK),
)
LOSS = CrossEntropy(TINY, 4)
# Shapes of 1 and 6 layers stand for those between, which repeat the same layer.
LAYERS = (1, 6) if "ALL_SHAPES" not in os.environ else tuple(range(1, 7))
KILLS = int(os.environ.get("KILLS", "1"))  # how often a test of kills kills; 10 takes long
STUDY = "homework-corpus"  # as a search of a folder named corpus calls it

AA, AB, AC, AD = (f"Dataset.tar.gz.part{suffix}" for suffix in ("aa", "ab", "ac", "ad"))


def write_corpus(
    folder: Path,
    speakers: int = 4,
    per_speaker: int = 15,
    test: int = 6,
    frames: tuple[int, int] = (12, 60),
    n_mels: int = 40,
    seed: int = 0,
) -> dict[str, str]:
    """Write a corpus whose speakers differ in their mean frame;
    return the speaker of each test file.
    """
    folder.mkdir(parents=True)
    draw = generator(seed, "corpus")
    names = [f"id{seed:02d}{number:03d}" for number in range(speakers)]
    means = torch.randn(speakers, n_mels, generator=draw) * 2
    answers: dict[str, str] = {}

    def utterance(speaker: int) -> dict[str, object]:
        length = int(torch.randint(frames[0], frames[1] + 1, (), generator=draw))
        name = f"uttr-{int(torch.randint(2**60, (), generator=draw)):032x}.pt"
        torch.save(means[speaker] + torch.randn(length, n_mels, generator=draw), folder / name)
        return {"feature_path": name, "mel_len": length}

    labelled = {name: [utterance(i) for _ in range(per_speaker)] for i, name in enumerate(names)}
    unlabelled = []
    for number in range(test):
        entry = utterance(number % speakers)
        answers[str(entry["feature_path"])] = names[number % speakers]
        unlabelled.append(entry)
    mapping = {
        "speaker2id": {name: i for i, name in enumerate(names)},
        "id2speaker": {str(i): name for i, name in enumerate(names)},
    }
    (folder / "mapping.json").write_text(json.dumps(mapping))
    (folder / "metadata.json").write_text(json.dumps({"n_mels": n_mels, "speakers": labelled}))
    (folder / "testdata.json").write_text(json.dumps({"n_mels": n_mels, "utterances": unlabelled}))
    return answers


def change(folder: Path, name: str, edit: Callable[[Any], object]) -> None:
    """Edit a manifest in place."""
    value = json.loads((folder / name).read_text())
    edit(value)
    (folder / name).write_text(json.dumps(value))


def refused(call: Callable[[], object]) -> str:
    """Return the one line with which a call refuses its input."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def program(*words: object) -> list[str]:
    """Return a command line of this project: a script's name or `-m` and a module,
    and its arguments.
    """
    first, *rest = map(str, words)
    return [
        sys.executable,
        *(["-m"] if first in ("speaker", "experiments") else []),
        _path(first),
        *rest,
    ]


def environment() -> dict[str, str]:
    """Return the environment of a user who stands in some folder and has this checkout on the path."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "OPTUNA_"))
    }
    return {**kept, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}


def start(folder: Path, *words: object, start_new_session: bool = False) -> "subprocess.Popen[str]":
    """Start a command of this project in a folder, and if asked as the head of a process group."""
    return subprocess.Popen(
        program(*words), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=start_new_session,
    )  # fmt: skip


def run(folder: Path, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of this project in a folder to its end, with some variables set."""
    return subprocess.run(
        program(*words),
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def cut_locks(url: str) -> None:
    """Cut the connections that hold locks on a PostgreSQL server, and wait until they are gone."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    held = "FROM pg_locks WHERE locktype = 'advisory' AND granted"
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"SELECT pg_terminate_backend(pid) {held}"))
        while connection.execute(sqlalchemy.text(f"SELECT count(*) {held}")).scalar():
            time.sleep(0.05)
    engine.dispose()


def assert_whole(home: Path, count: int, storage: str = "") -> None:
    """Both stores hold exactly `count` finished trials of one run each; nothing is left running."""
    database = open_storage(storage or f"sqlite:///{home}/mlruns/optuna.db")
    trials = optuna.load_study(study_name=STUDY, storage=database).get_trials()
    database.engine.dispose()
    assert [trial.number for trial in trials] == list(range(count))
    assert all(trial.state.is_finished() for trial in trials)
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    assert store.runs("attributes.status = 'RUNNING'") == []
    runs = store.runs("tags.kind = 'trial'")
    assert sorted(run.info.run_id for run in runs) == sorted(
        trial.user_attrs[RUN_ID] for trial in trials
    )
    assert len(store.runs("tags.kind = 'study'")) == 1


def _path(word: str) -> str:
    return str(ROOT / word) if word.endswith(".py") else word
