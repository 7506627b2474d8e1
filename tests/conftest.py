"""Fixtures: a tiny corpus and its pack, made once."""

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from experiments.context import TrainingContext
from experiments.tracking import store
from speaker.common import signals
from speaker.common.devices import Compute
from speaker.common.signals import STOPPING, install_signal_handlers
from speaker.data.corpus import Corpus, read_corpus
from speaker.data.pack import Pack, open_pack
from speaker.data.protocol import Protocol
from speaker.sources.demo import build_demo
from tests.helpers import write_corpus
from tests.servers import PostgresServer


@pytest.fixture(scope="session", autouse=True)
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let new MLflow databases begin as copies of one that went through MLflow's migrations, which
    take seconds. What other processes make goes through them.
    """
    folder, create = tmp_path_factory.mktemp("migrated"), store._create_store
    template = folder / "mlflow.db"
    SqlAlchemyStore(f"sqlite:///{template}", folder.as_uri()).engine.dispose()

    def copied(path: Path, artifacts: str) -> None:
        shutil.copyfile(template, path)
        create(path, artifacts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_create_store", copied)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(folder)
    return read_corpus(folder)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Corpus:
    """The demo corpus; processes that test at once share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "demo"
    build_demo(folder)
    return read_corpus(folder)


@pytest.fixture
def copy(corpus: Corpus, tmp_path: Path) -> Path:
    """The tiny corpus's files, to be spoilt."""
    return Path(shutil.copytree(corpus.folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def pack(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return open_pack(corpus, tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="session")
def context(
    corpus: Corpus, pack: Pack, tmp_path_factory: pytest.TempPathFactory
) -> TrainingContext:
    return TrainingContext(
        corpus,
        pack,
        Protocol(),
        Compute(),
        tmp_path_factory.mktemp("checkpoints"),
        {"device": "cpu"},
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a corpus, where a user stands.

    Utterances are short, so that wide points train in seconds.
    """
    write_corpus(tmp_path / "corpus", speakers=3, per_speaker=14, test=5, frames=(4, 9))
    return tmp_path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "mlruns"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server."""
    with closing(PostgresServer(tmp_path_factory.mktemp("postgres"))) as server:
        yield server.url


@pytest.fixture
def handlers() -> Iterator[None]:
    """Install the program's handlers, as run_cli does, and put the others back."""
    before = {signum: signal.getsignal(signum) for signum in (*STOPPING, signal.SIGALRM)}
    hook = sys.unraisablehook
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests are started otherwise
    install_signal_handlers()
    yield
    sys.unraisablehook = hook
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signals._signals.seen, signals._signals.pending = False, None
