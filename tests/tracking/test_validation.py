import csv
import io
from pathlib import Path

import pytest

from experiments.context import TrainingContext
from experiments.tracking.artifacts import read_text
from experiments.tracking.store import TrackingStore
from experiments.tracking.validation import FILE, HEAD, Prediction, from_csv, to_csv
from speaker.training.train import train
from tests.helpers import TINY


@pytest.fixture
def labels(context: TrainingContext) -> list[int]:
    """A label for each validation utterance, each right but the first."""
    _, rows = context.protocol.split(context.pack)
    right = context.pack.labels[rows].tolist()
    return [(right[0] + 1) % 4, *right[1:]]


def test_a_table_says_what_was_predicted(context: TrainingContext, labels: list[int]) -> None:
    text = to_csv(context, labels)
    assert [line["utterance"] for line in csv.DictReader(io.StringIO(text))]
    first, *others = from_csv(text)
    assert not first.is_right
    assert all(each.is_right for each in others)
    by_file = {each.feature_path: each for each in context.corpus.utterances}
    for each in (first, *others):
        known = by_file[each.utterance]
        assert known.speaker is not None
        assert (each.frames, each.speaker) == (known.frames, context.corpus.speakers[known.speaker])
    with pytest.raises(ValueError, match="shorter"):
        to_csv(context, labels[1:])


def test_names_may_hold_anything() -> None:
    head = ",".join(HEAD)
    (kept,) = from_csv(f'{head}\n"a,""b\nc",7,"x\ny",=1+1\n')
    assert kept == Prediction('a,"b\nc', 7, "x\ny", "=1+1")


@pytest.mark.parametrize(
    "text",
    ["", "\n", "a,b\n1,2\n", f"{','.join(HEAD)}\na,b,c\n", f"{','.join(HEAD)}\na,x,c,d\n",
     f'{",".join(HEAD)}\n"a', "\0"],
)  # fmt: skip
def test_other_text_is_no_table(text: str) -> None:
    assert from_csv(text) == []


def test_a_training_keeps_the_predictions_of_its_best_weights(
    state: Path, context: TrainingContext
) -> None:
    store = TrackingStore(f"sqlite:///{state}/mlflow.db")
    config = TINY.replace(steps=8)
    result = train(config, context.pack, context.protocol, lambda *_: False)
    run = store.open_run("d16", {})
    run.log_result(result, config, context)
    kept = from_csv(read_text(store, store.client.get_run(run.run_id), FILE))
    right = sum(each.is_right for each in kept)
    assert right / len(kept) == result.best["accuracy/whole"]
    assert "".join("01"[each.is_right] for each in kept) == f"{int(result.hits, 16):b}"[1:]
