"""The registered model behind MLflow's own server: what it answers, and what it refuses."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from experiments import promotion
from experiments.context import TrainingContext
from experiments.promotion import Request
from experiments.registry.versions import download_model
from experiments.tracking.names import CHAMPION
from experiments.tracking.store import TrackingStore
from speaker.data.corpus import read_mels
from speaker.model.saved_model import TrainedModel, load_model
from speaker.prediction.predict import predict_probabilities
from tests.helpers import environment
from tests.models import finished_run

pytestmark = pytest.mark.slow

SERVE = ["models", "serve", "-m", "models:/speaker-classifier@champion", "--env-manager", "local"]


@dataclass(frozen=True)
class Served:
    """A server of the champion, and the champion itself."""

    url: str
    process: "subprocess.Popen[bytes]"
    trained: TrainedModel

    def post(self, body: Any, **options: Any) -> requests.Response:
        """Send a body: as JSON, or as it is where it is text or bytes."""
        data = body if isinstance(body, str | bytes) else json.dumps(body)
        headers = {"Content-Type": "application/json", **options}
        return requests.post(f"{self.url}/invocations", data=data, headers=headers, timeout=120)

    def predictions(self, body: Any) -> Any:
        answer = self.post(body)
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"]


@pytest.fixture(scope="module")
def served(context: TrainingContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    (home / "mlruns").mkdir()
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    run_id, _ = finished_run(store, context, 0, "111000")
    promotion.promote(store, run_id, Request("2026-11-28 04:00:00 UTC"))
    download_model(store, CHAMPION, home / "champion")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", *SERVE, "--port", port]
    alone = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn
    with subprocess.Popen(
        command, cwd=home, env={**alone, "PATH": path, "MLFLOW_TRACKING_URI": store.uri},
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(url, process)
            yield Served(url, process, load_model(home / "champion"))
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/ping", timeout=10).ok:
                return
        time.sleep(0.2)
    raise AssertionError(f"the server ended with {process.returncode}")


def utterances(*lengths: int, bands: int = 40, value: float = 0.5) -> list[list[list[float]]]:
    return [[[value] * bands] * frames for frames in lengths]


def test_200_requests_of_mixed_lengths_are_answered_as_predict_does(
    served: Served, context: TrainingContext
) -> None:
    corpus = context.corpus
    known = [*corpus.utterances, *corpus.test]
    expected = predict_probabilities([served.trained], corpus, known, torch.device("cpu"))[0]
    draw = random.Random(0)  # noqa: S311  # utterances, not secrets
    for _ in range(200):
        rows = draw.choices(range(len(known)), k=draw.randint(1, 6))
        mels = [read_mels(corpus, known[row]).tolist() for row in rows]
        found = served.predictions({"inputs": {"mels": mels}})
        torch.testing.assert_close(
            torch.tensor(found["probabilities"]), expected[rows], atol=1e-6, rtol=1e-5
        )
        best = expected[rows].max(1)
        assert found["speaker"] == [corpus.speakers[each] for each in best.indices.tolist()]
        assert found["probability"] == pytest.approx(best.values.tolist(), abs=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 700, 3_000])
def test_short_and_long_utterances(served: Served, frames: int) -> None:
    mels = torch.randn(frames, 40)
    found = served.predictions({"inputs": {"mels": [mels.tolist(), *utterances(5)]}})
    with torch.inference_mode():
        alone = served.trained.model(mels[None]).softmax(1)[0]
    torch.testing.assert_close(torch.tensor(found["probabilities"][0]), alone, atol=1e-5, rtol=1e-4)


def test_each_form_of_mlflows_protocol_says_the_same(served: Served) -> None:
    first, second = utterances(3, 5)
    expected = served.predictions({"inputs": {"mels": [first, second]}})
    records = [{"mels": first}, {"mels": second}]
    for body in (
        {"inputs": records},
        {"dataframe_records": records},
        {"dataframe_split": {"columns": ["mels"], "data": [[first], [second]]}},
        # Padded, as a tensor would have to be.
        {"inputs": {"mels": [first + utterances(2, value=9.0)[0], second], "lengths": [3, 5]}},
    ):
        assert served.predictions(body) == expected


RULE = r"an utterance must be 1 to 10,000 frames of 40 finite numbers, but number "
SPOILT = [[0.0] * 40, [0.0] * 39 + [float("nan")]]
NOT_JSON = "valid JSON"
FIELDS = "exactly one of the input fields"
MISSING = r"missing inputs \['mels'\]"
MALFORMED: list[tuple[Any, str]] = [
    # A number of bands, frames or dimensions that is not the model's.
    *(({"inputs": {"mels": utterances(3, bands=bands)}}, rf"{RULE}0 of mels has the shape \(3, {bands}\)")
      for bands in (1, 39, 41, 80, 400)),
    ({"inputs": {"mels": [*utterances(3), *utterances(4, bands=20)]}}, rf"{RULE}1 of mels has the shape \(4, 20\)"),
    ({"inputs": {"mels": utterances(3)[0]}}, rf"{RULE}0 of mels has the shape \(40,\)"),
    ({"inputs": {"mels": [utterances(3)]}}, rf"{RULE}0 of mels has the shape \(1, 3, 40\)"),
    ({"inputs": {"mels": [[[0.0] * 40, [0.0] * 39]]}}, rf"{RULE}0 of mels has frames that differ in size"),
    ({"inputs": {"mels": [[[0.0] * 40, 0.0]]}}, rf"{RULE}0 of mels has frames that differ in size"),
    ({"inputs": {"mels": [*utterances(2), []]}}, rf"{RULE}1 of mels has the shape \(0,\)"),
    ({"inputs": {"mels": [[[]]]}}, rf"{RULE}0 of mels has the shape \(1, 0\)"),
    ({"inputs": {"mels": []}}, rf"{RULE}0 of mels has the shape \(0,\)"),
    ({"inputs": {"mels": utterances(10_001)}}, rf"{RULE}0 of mels has 10,001 frames; send excerpts"),
    ({"inputs": {"mels": utterances(2, 20_000)}}, rf"{RULE}1 of mels has 20,000 frames; send excerpts"),
    # Numbers that are none, or none that a float32 holds.
    ({"inputs": {"mels": [SPOILT]}}, rf"{RULE}0 of mels has nan at frame 1, band 39"),
    ({"inputs": {"mels": [*utterances(7), SPOILT]}}, rf"{RULE}1 of mels has nan at frame 1, band 39"),
    *(({"inputs": {"mels": utterances(2, value=value)}}, rf"{RULE}0 of mels has {shown} at frame 0, band 0")
      for value, shown in ((float("inf"), "inf"), (float("-inf"), "-inf"), (1e39, r"1e\+39"), (-1e300, r"-1e\+300"))),
    ('{"inputs": {"mels": [[' + json.dumps([0.0] * 39)[:-1] + ', 1e999]]]}}', rf"{RULE}0 of mels has inf"),
    *(({"inputs": {"mels": [[[value] * 40]]}}, rf"{RULE}0 of mels holds what is no number: \[\[{shown}")
      for value, shown in (("1.5", "'1.5'"), ("", "''"), (None, "None"), (True, "True"), ({}, r"\{\}"), (10**400, "1000"))),
    ({"inputs": {"mels": [[[0.0] * 39 + ["x"]]]}}, rf"{RULE}0 of mels holds what is no number"),
    ({"inputs": {"mels": ["uttr-1.pt", "uttr-2.pt"]}}, rf"{RULE}0 of mels has the shape \(2,\)"),
    ({"inputs": {"mels": [None]}}, rf"{RULE}0 of mels is None"),
    ({"inputs": {"mels": 7}}, rf"{RULE}0 of mels is 7"),
    ({"inputs": {"mels": {"a": 1}}}, rf"{RULE}0 of mels is 1"),
    # Lengths that do not go with them.
    *(({"inputs": {"mels": utterances(3), "lengths": [length]}}, f"lengths must be whole numbers from 1 to .*, 3, but .* is {length}")
      for length in (0, -1, 4, 2.5, True, float("nan"), "three")),
    ({"inputs": {"mels": utterances(3, 3), "lengths": [3]}}, "same length"),
    # What is no request.
    ({}, FIELDS), ({"mels": utterances(3)}, FIELDS), (utterances(3), FIELDS), ("7", FIELDS), ('"mels"', FIELDS),
    ({"inputs": {"mels": utterances(3)}, "instances": [1]}, FIELDS),
    ("", NOT_JSON), ("{", NOT_JSON), ("mels=1", NOT_JSON), (b"\xff\xfe\x00", NOT_JSON), (b"\x80PT", NOT_JSON),
    ({"inputs": {"mel": utterances(3)}}, MISSING), ({"inputs": [{"mel": 1}]}, MISSING), ({"inputs": []}, MISSING),
    ({"inputs": {}}, "mels|at least"), ({"inputs": "mels"}, MISSING), ({"inputs": None}, "Expected input to be DataFrame"),
    ({"dataframe_records": []}, MISSING), ({"dataframe_records": {"mels": 1}}, "must be a list of records"),
    ({"dataframe_split": {"columns": ["mels"], "data": []}}, "at least one utterance"),
]  # fmt: skip


def test_there_are_enough_malformed_requests() -> None:
    assert len(MALFORMED) >= 50


def test_malformed_requests_are_refused_with_a_reason_and_the_server_lives_on(
    served: Served,
) -> None:
    good = {"inputs": {"mels": utterances(3, 5)}}
    before = served.predictions(good)
    wrong = []
    for body, reason in MALFORMED:
        answer = served.post(body)
        text = answer.json().get("message", "")
        if not (400 <= answer.status_code < 500 and re.search(reason, text)):
            wrong.append((str(body)[:80], answer.status_code, answer.text[:300]))
        elif reason.startswith(RULE):
            assert len(text) < 250, "the request is not sent back"
    assert not wrong
    assert served.predictions(good) == before
    assert served.process.poll() is None


@pytest.mark.parametrize(
    ("kind", "status"), [("application/octet-stream", 415), ("text/csv", 400), ("", 415)]
)
def test_another_type_of_content_is_refused(served: Served, kind: str, status: int) -> None:
    answer = served.post("mels\n1", **{"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert served.predictions({"inputs": {"mels": utterances(3)}})
