import csv
from pathlib import Path

import pytest
import torch

from speaker.checkpoint import TrainedModel
from speaker.corpus import Corpus, read_corpus, read_mels
from speaker.errors import UserError
from speaker.evaluation import MAX_FRAMES
from speaker.model import SpeakerClassifier
from speaker.predict import check_match, predict_logits, write_csv
from tests.helpers import TINY, write_corpus


@pytest.fixture
def trained(corpus: Corpus) -> TrainedModel:
    torch.manual_seed(0)
    return TrainedModel(SpeakerClassifier(TINY, 40, 4).eval(), TINY, 40, corpus.speakers, "digest")


def test_equals_one_utterance_at_a_time_in_the_manifests_order(
    corpus: Corpus, trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = predict_logits(trained, corpus, torch.device("cpu"))
    with torch.no_grad():
        for row, utterance in enumerate(corpus.test):
            assert torch.allclose(logits[row], trained.model(read_mels(corpus, utterance)[None])[0], atol=1e-5)
    monkeypatch.setitem(MAX_FRAMES, "cpu", 1)
    assert torch.allclose(predict_logits(trained, corpus, torch.device("cpu")), logits, atol=1e-5)


def test_writes_the_homeworks_csv(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "submission.csv"
    out.write_text("old")
    write_csv(out, corpus, ["id00001"] * 6)
    assert out.read_bytes().startswith(b"Id,Category\nuttr-")
    rows = list(csv.reader(out.read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == [utterance.feature_path for utterance in corpus.test]
    assert {row[1] for row in rows[1:]} == {"id00001"}
    with pytest.raises(UserError, match="--out must be a file"):
        write_csv(tmp_path / "none" / "x.csv", corpus, ["id00001"] * 6)


def test_a_model_of_other_speakers_or_features_is_refused(
    corpus: Corpus, trained: TrainedModel, tmp_path: Path
) -> None:
    check_match(trained, corpus)
    write_corpus(tmp_path / "others", seed=1)
    with pytest.raises(UserError, match="the model knows 4, .* has 4, and 0 are in both"):
        check_match(trained, read_corpus(tmp_path / "others"))
    write_corpus(tmp_path / "more", speakers=5)
    with pytest.raises(UserError, match="the model knows 4, .* has 5, and 4 are in both"):
        check_match(trained, read_corpus(tmp_path / "more"))
    write_corpus(tmp_path / "mels", n_mels=20)
    with pytest.raises(UserError, match="the model has 40 and .* has 20"):
        check_match(trained, read_corpus(tmp_path / "mels"))
