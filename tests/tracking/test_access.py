"""Where runs and models are kept is said, and who decided it; a server that lets nobody in is told from one that is
not there.
"""

import socket
from pathlib import Path

import pytest

from experiments.context import TrainingContext
from experiments.tracking.access import (
    PASSWORD,
    REGISTRY,
    TOKEN,
    TRACKING,
    USERNAME,
    describe_places,
)
from experiments.tracking.names import EXPERIMENT, MODEL
from experiments.tracking.store import TrackingStore
from tests.fault_server import Fault, FaultServer
from tests.helpers import refused
from tests.models import finished_run
from tests.warm import run_warm

OPENING = f"api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
ALIAS = f"api/2.0/mlflow/registered-models/alias?name={MODEL}&alias=champion"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TRACKING, REGISTRY, USERNAME, PASSWORD, TOKEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.mark.parametrize(
    ("status", "login", "words"),
    [
        (401, {}, f"wants a login (401): set {USERNAME} and {PASSWORD}, or {TOKEN}"),
        (401, {USERNAME: "u", PASSWORD: "secret"}, f"refuses the login of {USERNAME} (401): check it"),
        (401, {TOKEN: "secret"}, f"refuses the login of {TOKEN} (401)"),
        (403, {USERNAME: "u", PASSWORD: "secret"}, f"does not allow the login of {USERNAME} to do this (403)"),
        (403, {}, "does not allow requests without a login"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"You are not authenticated.", b"", b"<html><b>no</b></html>"])
def test_a_login_that_is_missing_refused_or_too_weak(
    monkeypatch: pytest.MonkeyPatch, status: int, login: dict[str, str], words: str, body: bytes
) -> None:
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    with FaultServer({}) as server:
        server.always[OPENING] = Fault(status=status, body=body)
        uri = server.url("").rstrip("/")
        said = refused(lambda: TrackingStore(uri))
    assert said.startswith(f"the tracking store {uri} ")
    assert words in said
    assert "secret" not in said


def test_no_server_is_told_from_one_that_is_no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    there = f"http://u:secret@{address}"
    said = refused(lambda: TrackingStore(there))
    assert said == (
        f"the tracking store http://u:***@{address} does not answer: there is no server; start it, "
        "or check --tracking-uri"
    )
    monkeypatch.setenv(TRACKING, there)
    said = refused(lambda: TrackingStore(there))
    assert (
        f"(by {TRACKING}) does not answer: there is no server; start it, or check {TRACKING}"
        in said
    )
    with FaultServer({OPENING: b"<html>"}) as server:
        uri = server.url("").rstrip("/")
        said = refused(lambda: TrackingStore(uri.replace("//", "//u:secret@")))
    assert "does not answer (" in said
    assert "JSON" in said
    assert "secret" not in said


def test_what_decides_is_said(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{state}/mlflow.db"
    store = TrackingStore(uri)
    assert describe_places(uri, store.decided_by) == f"Runs are kept in {uri}."
    with monkeypatch.context() as inside:
        inside.chdir(state.parent)
        assert describe_places(uri, store.decided_by) == "Runs are kept in mlruns/mlflow.db."
    monkeypatch.setenv(TRACKING, uri)
    store = TrackingStore(uri)
    assert describe_places(uri, store.decided_by) == f"Runs are kept in {uri} (by {TRACKING})."
    monkeypatch.setenv(REGISTRY, "http://u:secret@models.example")
    assert describe_places(uri, store.decided_by) == (
        f"Runs are kept in {uri} (by {TRACKING}), models in http://u:***@models.example (by {REGISTRY}) with the "
        "login in its address."
    )


@pytest.mark.slow
def test_a_registry_of_its_own_is_named_and_used_and_its_refusal_is_told(
    state: Path, context: TrainingContext, tmp_path: Path
) -> None:
    run_id, _ = finished_run(TrackingStore(f"sqlite:///{state}/mlflow.db"), context, 0, "111000")
    promote = ("experiments", "promote", "--run", run_id)
    with FaultServer({}) as server:
        server.always[ALIAS] = Fault(status=403, body=b"Permission denied")
        uri = server.url("").rstrip("/")
        done = run_warm(tmp_path, *promote, **{REGISTRY: uri})
    assert done.returncode == 2
    assert f", models in {uri} (by {REGISTRY})." in done.stdout
    assert done.stderr.startswith(
        f"error: a store or disk failed ({uri} (by {REGISTRY}) does not allow requests"
    )
    assert len(done.stderr.splitlines()) == 1
    registry = f"sqlite:///{tmp_path}/registry.db"
    done = run_warm(tmp_path, *promote, **{REGISTRY: registry})
    assert done.returncode == 0, done.stderr
    assert f"models in registry.db (by {REGISTRY})." in done.stdout
    words = ("speaker", "predict", "--data", context.corpus.folder)
    assert run_warm(tmp_path, *words, **{REGISTRY: registry}).returncode == 0
    assert "promote a study first" in run_warm(tmp_path, *words).stderr, (
        "the other registry has none"
    )
