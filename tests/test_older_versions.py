"""What an older version left behind still works. The stores are of the commit before the blocks of the model had names:
a study of three trials, promoted, and one run of train_trial.py, on the corpus of tests.helpers.write_corpus.
"""

import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import optuna
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from experiments.analysis.leaderboard import ranked
from experiments.context import load_context
from experiments.proposals.space import Space
from experiments.registry.served_files import export_program
from experiments.study.search import WorkerSpec
from experiments.study.settings import SearchSettings
from experiments.study.storage import open_storage
from experiments.study.trial import run_trial
from experiments.tracking.names import BEST_WHOLE, PRESENT
from experiments.tracking.store import TrackingStore
from speaker.config import ACTIVATIONS
from speaker.data.corpus import read_corpus, read_mels
from speaker.data.pack import PADDING
from speaker.model.saved_model import load_model
from speaker.prediction.predict import predict_probabilities
from speaker.training.metrics import OBJECTIVE
from tests.helpers import ROOT, TINY, refused, write_corpus
from tests.warm import run_warm

pytestmark = pytest.mark.slow

OLD = ROOT / "tests" / "files" / "mlruns-of-november-2026.tar.xz"
SPACE = Space("homework", choices={"activation": ACTIVATIONS}, integers={"num_layers": (1, 6)})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    state = tmp_path / "mlruns"
    with tarfile.open(OLD) as archive:
        archive.extractall(state, filter="data")
    for name in ("mlflow", "optuna"):
        script = (state / f"{name}.sql").read_text().replace("HOME", str(tmp_path))
        with sqlite3.connect(state / f"{name}.db") as connection:
            connection.executescript(script)
        connection.close()
    return tmp_path


def test_old_runs_compare_promote_and_predict(home: Path) -> None:
    compared = run_warm(home, "experiments", "compare", "--study", "homework-corpus")
    assert compared.returncode == 0, compared.stderr
    (line,) = (line for line in compared.stdout.splitlines() if " #1 " in line)
    assert line.split()[2:10] == ["d16", "h2", "L6", "relu", "-", "0.8333", "-", "0.8333"]
    assert line.split()[11] == "14,340"
    predicted = run_warm(home, "speaker", "predict", "--data", "corpus", "--out", "new.csv")
    assert predicted.returncode == 0, predicted.stderr
    assert (home / "new.csv").read_bytes() == (home / "mlruns" / "predicted.csv").read_bytes()
    promoted = run_warm(home, "experiments", "promote", "--study", "homework-corpus")
    assert promoted.stdout.splitlines()[-1] == "It was before, too: nothing changed.", (
        promoted.stderr
    )


def test_plain_mlflow_loads_an_old_version(home: Path) -> None:
    (card,) = (home / "mlruns").rglob("models/*/artifacts/artifacts/model.json")
    trained = load_model(card.parent)
    export_program(trained, card.with_name("program.pt2"))  # left out of the archive for its size
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlruns/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/speaker-classifier@champion")
    corpus = read_corpus(home / "corpus")
    mels = pad_sequence([read_mels(corpus, each) for each in corpus.test], True, PADDING)
    lengths = torch.tensor([each.frames for each in corpus.test])
    answer = model.predict({"mels": mels.numpy(), "lengths": lengths.numpy()})
    expected = predict_probabilities([trained], corpus, corpus.test, torch.device("cpu"))[0]
    torch.testing.assert_close(torch.from_numpy(answer["probabilities"]), expected)
    assert answer["speaker"].tolist() == [corpus.speakers[each] for each in expected.argmax(1)]


def test_an_old_study_grows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    context = load_context(Path("corpus"), "cpu", "fp32", Path("mlruns"))
    settings = SearchSettings("homework-corpus", SPACE, TINY, 0, "tpe", "none", 4, None)
    storage, uri = (f"sqlite:///{home}/mlruns/{name}.db" for name in ("optuna", "mlflow"))
    worker = WorkerSpec(settings, context, storage, uri).open()
    assert [trial.state for trial in worker.finished()] == [optuna.trial.TrialState.COMPLETE] * 3
    assert worker.study.metric_names == [OBJECTIVE]
    before = ranked(worker.shared.store, "homework-corpus")
    for trial in worker.trials():
        run_trial(worker.shared, trial, tqdm(disable=True))
    worker.close()
    rows = ranked(worker.shared.store, "homework-corpus")
    assert {row.trial for row in rows} == {"0", "1", "2", "3"}
    assert [row for row in rows if row.trial != "3"] == before, "old ones read as they were"
    assert all(
        row.whole is not None and row.curve and row.seconds and row.parameters for row in rows
    )
    plain = mlflow.MlflowClient(uri)
    written = [set(plain.get_run(row.run_id).data.metrics) for row in before]
    assert all("best/accuracy_whole" in names and BEST_WHOLE not in names for names in written)
    (new,) = (row.run_id for row in rows if row.trial == "3")
    assert not set(plain.get_run(new).data.metrics) & PRESENT.keys()
    best = plain.get_run(worker.shared.parent).data.metrics[BEST_WHOLE]
    assert best == max(row.whole or 0.0 for row in rows)


def test_an_old_folder_that_was_moved_is_brought_back(home: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for name in ("mlruns", "corpus"):
        (home / name).rename(new / name)
    said = run_warm(new, "experiments", "compare")
    assert (said.returncode, said.stdout) == (2, "")
    assert "python -m experiments moved" in said.stderr
    moved = run_warm(new, "experiments", "moved")
    assert moved.returncode == 0, moved.stderr
    predicted = run_warm(new, "speaker", "predict", "--data", "corpus", "--out", "new.csv")
    assert predicted.returncode == 0, predicted.stderr
    assert (new / "new.csv").read_bytes() == (new / "mlruns" / "predicted.csv").read_bytes()


def test_an_old_study_is_taken_elsewhere(home: Path, tmp_path: Path) -> None:
    written = run_warm(home, "experiments", "export", "homework-corpus", "--to", "old.zip")
    assert written.returncode == 0, written.stderr
    there = tmp_path / "there"
    there.mkdir()
    taken = run_warm(there, "experiments", "import", home / "old.zip")
    assert taken.returncode == 0, taken.stderr
    stores = [TrackingStore(f"sqlite:///{each}/mlruns/mlflow.db") for each in (home, there)]
    before, after = (
        [replace(row, run_id="", tags={}) for row in ranked(store, "homework-corpus")]
        for store in stores
    )
    assert before == after
    predicted = run_warm(there, "speaker", "predict", "--data", home / "corpus", "--out", "new.csv")
    assert predicted.returncode == 0, predicted.stderr
    assert (there / "new.csv").read_bytes() == (home / "mlruns" / "predicted.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("mlflow", "df50e92ffc5e", "bring it up to date: mlflow db upgrade sqlite:///"),
        ("optuna", "v3.0.0.d", "bring it up to date: optuna storage upgrade --storage sqlite:///"),
    ],
)
def test_a_database_of_an_older_release_says_how_to_bring_it_up_to_date(
    tmp_path: Path, name: str, revision: str, words: str
) -> None:
    """The database is new, but says of itself that it is of an older schema."""
    url = f"sqlite:///{tmp_path}/{name}.db"
    opened: Callable[[], object] = {
        "mlflow": lambda: TrackingStore(url), "optuna": lambda: open_storage(url).engine.dispose(),
    }[name]  # fmt: skip
    opened()
    with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    if name == "optuna":
        assert words in refused(opened)
        return
    said = run_warm(
        tmp_path, "experiments", "compare", "--tracking-uri", url
    )  # MLflow looks once a process
    assert said.returncode == 2
    assert words in said.stderr
