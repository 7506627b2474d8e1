from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import SpeakerClassifier
from speaker.training.evaluation import MAX_FRAMES, Evaluator
from speaker.training.metrics import ACCURACY_CROPS, ACCURACY_WHOLE, hex_of, hits_of
from tests.helpers import LOSS, TINY


@pytest.fixture
def model() -> SpeakerClassifier:
    torch.manual_seed(3)
    return SpeakerClassifier(TINY, 40, 4)


def test_agrees_with_one_utterance_at_a_time(pack: Pack, model: SpeakerClassifier) -> None:
    measured = Evaluator(pack, Protocol())(model, LOSS)
    _, valid = Protocol().split(pack)
    hits, loss = 0, 0.0
    model.eval()
    with torch.no_grad():
        for row in valid.tolist():
            start, length = int(pack.offsets[row]), int(pack.lengths[row])
            logits = model(pack.frames[None, start : start + length].float())
            hits += int(logits.argmax() == pack.labels[row])
            loss += float(F.cross_entropy(logits[0], pack.labels[row]))
    assert measured[ACCURACY_WHOLE] == hits / 6
    assert measured["loss/whole"] == pytest.approx(loss / 6, abs=1e-5)


def test_crops_are_fixed_by_their_seed_and_length(pack: Pack, model: SpeakerClassifier) -> None:
    """With crops as long as the longest utterance, crops are whole utterances;
    else the seed decides.
    """
    whole = Evaluator(pack, Protocol(crop_len=1_000))(model, LOSS)
    assert whole[ACCURACY_CROPS] == whole[ACCURACY_WHOLE]
    short = Protocol(crop_len=2)
    assert (
        Evaluator(pack, short)(model, LOSS)[ACCURACY_CROPS]
        == Evaluator(pack, short)(model, LOSS)[ACCURACY_CROPS]
    )
    starts = [
        Evaluator(pack, Protocol(crop_len=2, crop_seed=seed))._crops[0][1].tolist()
        for seed in range(3)
    ]
    assert len({tuple(each) for each in starts}) == 3


def test_the_batch_size_does_not_matter(
    pack: Pack, model: SpeakerClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Evaluator(pack, Protocol())(model, LOSS)
    monkeypatch.setitem(MAX_FRAMES, "cpu", 1)
    small = Evaluator(pack, Protocol())(model, LOSS)
    assert large[ACCURACY_WHOLE] == small[ACCURACY_WHOLE]
    assert large[ACCURACY_CROPS] == small[ACCURACY_CROPS]
    assert large["loss/whole"] == pytest.approx(small["loss/whole"], abs=1e-5)


def test_hits_are_kept_in_the_order_of_the_split(
    pack: Pack, model: SpeakerClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, valid = Protocol().split(pack)
    right = [True, False, False, True, True, False]
    model.eval()
    labels = pack.labels.clone()
    with torch.no_grad():
        for row, hit in zip(valid.tolist(), right, strict=True):
            start, length = int(pack.offsets[row]), int(pack.lengths[row])
            answer = int(model(pack.frames[None, start : start + length].float()).argmax())
            labels[row] = answer if hit else (answer + 1) % 4
    for most in (MAX_FRAMES["cpu"], 1):
        monkeypatch.setitem(MAX_FRAMES, "cpu", most)
        evaluate = Evaluator(replace(pack, labels=labels), Protocol())
        assert evaluate(model, LOSS)[ACCURACY_WHOLE] == 0.5
        assert evaluate.hits.tolist() == right


def test_hits_are_written_a_bit_each() -> None:
    for bits in ([], [False], [True], [False, False, True], [True] * 9, [False] * 8 + [True]):
        assert hits_of(hex_of(torch.tensor(bits, dtype=torch.bool))) == bits
    assert hex_of(torch.tensor([False, False, True])) == "9"


def test_the_model_goes_on_in_the_mode_it_was_in(pack: Pack, model: SpeakerClassifier) -> None:
    evaluate = Evaluator(pack, Protocol())
    model.train()
    evaluate(model, LOSS)
    assert model.training
    model.eval()
    evaluate(model, LOSS)
    assert not model.training


def test_protocols_read_well() -> None:
    words = Protocol(split_seed=3, crop_len=64, crop_seed=9).describe()
    assert words["whole"] == "valid part of split 3, whole utterances, masked"
    assert words["crops"] == "valid part of split 3, one crop of 64 frames each, crop seed 9"


class Hungry(nn.Module):
    """A model on a device with too little memory for more than some frames at once."""

    def __init__(self, model: SpeakerClassifier, most: int) -> None:
        super().__init__()
        self.model, self.most, self.refused = model, most, 0

    def forward(self, mels: Tensor, lengths: Tensor | None) -> Tensor:
        if mels.shape[0] * mels.shape[1] > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.model(mels, lengths)


def test_where_memory_is_short_batches_are_halved_once_and_for_all(
    pack: Pack, model: SpeakerClassifier
) -> None:
    expected = Evaluator(pack, Protocol())(model, LOSS)
    evaluate, hungry = Evaluator(pack, Protocol()), Hungry(model, 100)
    for tried in (True, False):
        hungry.refused = 0
        measured = evaluate(hungry, LOSS)
        assert bool(hungry.refused) == tried
        assert measured[ACCURACY_WHOLE] == expected[ACCURACY_WHOLE]
        assert measured[ACCURACY_CROPS] == expected[ACCURACY_CROPS]
        assert measured["loss/whole"] == pytest.approx(expected["loss/whole"], abs=1e-5)


def test_an_utterance_that_does_not_fit_alone_is_out_of_memory(
    pack: Pack, model: SpeakerClassifier
) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Evaluator(pack, Protocol())(Hungry(model, 20), LOSS)
