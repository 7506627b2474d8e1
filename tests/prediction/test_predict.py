from pathlib import Path

import pytest
import torch
from torch import Tensor

from speaker.common.errors import UserError
from speaker.data.corpus import Corpus, read_corpus, read_mels
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import SpeakerClassifier
from speaker.model.saved_model import TrainedModel
from speaker.prediction.predict import predict_probabilities, validate_match, validation_gain
from speaker.training.evaluation import MAX_FRAMES, Evaluator
from speaker.training.metrics import ACCURACY_WHOLE
from tests.helpers import LOSS, TINY, write_corpus

CPU = torch.device("cpu")


def untrained(corpus: Corpus, digest: str = "digest", seed: int = 0) -> TrainedModel:
    torch.manual_seed(seed)
    return TrainedModel(
        SpeakerClassifier(TINY, 40, 4).eval(), TINY, 40, corpus.speakers, digest, "sha256", {}
    )


@pytest.fixture
def trained(corpus: Corpus) -> TrainedModel:
    return untrained(corpus)


@pytest.mark.parametrize("batch_size", [None, 1, 4, 64])
@pytest.mark.parametrize("max_frames", [MAX_FRAMES["cpu"], 1, 90])
def test_equals_one_utterance_at_a_time_in_the_manifests_order(
    corpus: Corpus,
    trained: TrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int | None,
    max_frames: int,
) -> None:
    monkeypatch.setitem(MAX_FRAMES, "cpu", max_frames)
    (probabilities,) = predict_probabilities([trained], corpus, corpus.test, CPU, batch_size)
    with torch.no_grad():
        for row, utterance in enumerate(corpus.test):
            expected = trained.model(read_mels(corpus, utterance)[None])[0].softmax(0)
            assert torch.allclose(probabilities[row], expected, atol=1e-6)


def test_each_model_of_several_has_its_own_answer(corpus: Corpus) -> None:
    models = [untrained(corpus, seed=seed) for seed in range(3)]
    together = predict_probabilities(models, corpus, corpus.test, CPU)
    for model, probabilities in zip(models, together, strict=True):
        assert torch.equal(
            predict_probabilities([model], corpus, corpus.test, CPU)[0], probabilities
        )


def test_the_gain_of_a_vote(corpus: Corpus, pack: Pack) -> None:
    models = [untrained(corpus, pack.digest, seed) for seed in range(3)]
    gain = validation_gain(models, corpus, pack.digest, CPU, Protocol())
    evaluator = Evaluator(pack, Protocol())
    assert gain.singles == tuple(evaluator(each.model, LOSS)[ACCURACY_WHOLE] for each in models)
    assert gain.utterances == 6
    once = validation_gain(models[:1], corpus, pack.digest, CPU, Protocol())
    assert once.ensemble == once.singles[0]
    assert "a gain of +0.00 points" in once.describe()
    with pytest.raises(UserError, match="the corpus that the models were trained on"):
        validation_gain([*models, untrained(corpus)], corpus, pack.digest, CPU, Protocol())


def test_a_sure_model_outvotes_unsure_ones(corpus: Corpus, pack: Pack) -> None:
    _, valid = Protocol().split(pack)
    knowing = untrained(corpus, pack.digest)
    for _ in range(60):  # it learns the validation part by heart
        mels, lengths = pack.gather(valid, 0, pack.longest)
        loss = torch.nn.functional.cross_entropy(knowing.model(mels, lengths), pack.labels[valid])
        gradients = torch.autograd.grad(loss, list(knowing.model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(knowing.model.parameters(), gradients, strict=True):
                parameter.sub_(gradient.sign(), alpha=0.1)
    others = [untrained(corpus, pack.digest, seed) for seed in (1, 2)]
    gain = validation_gain([*others, knowing], corpus, pack.digest, CPU, Protocol())
    assert gain.singles[2] > max(gain.singles[:2])
    assert gain.ensemble == gain.singles[2]


def test_a_model_of_other_speakers_or_features_is_refused(
    corpus: Corpus, trained: TrainedModel, tmp_path: Path
) -> None:
    validate_match(trained, corpus)
    write_corpus(tmp_path / "others", seed=1)
    with pytest.raises(UserError, match="the model knows 4, .* has 4, and 0 are in both"):
        validate_match(trained, read_corpus(tmp_path / "others"))
    write_corpus(tmp_path / "more", speakers=5)
    with pytest.raises(UserError, match="the model knows 4, .* has 5, and 4 are in both"):
        validate_match(trained, read_corpus(tmp_path / "more"))
    write_corpus(tmp_path / "mels", n_mels=20)
    with pytest.raises(UserError, match="the model has 40 and .* has 20"):
        validate_match(trained, read_corpus(tmp_path / "mels"))


def test_long_utterances_are_warned_of(
    corpus: Corpus,
    trained: TrainedModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = max(utterance.frames for utterance in corpus.test)
    for bound, warned in ((longest - 1, True), (longest, False)):
        monkeypatch.setattr("speaker.prediction.predict.LONG_FRAMES", bound)
        predict_probabilities([trained], corpus, corpus.test, CPU)
        said = f"utterances have more than {bound:,} frames, the longest {longest:,};"
        assert (said in capsys.readouterr().err) == warned


def test_where_memory_is_short_a_batch_is_halved(
    corpus: Corpus, trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for a card: more than so many frames at once are refused."""
    expected = predict_probabilities([trained], corpus, corpus.test, CPU)
    forward = SpeakerClassifier.forward
    sizes: list[int] = []

    def hungry(self: SpeakerClassifier, mels: Tensor, lengths: Tensor) -> Tensor:
        if mels.shape[0] * mels.shape[1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(mels))
        return forward(self, mels, lengths)

    monkeypatch.setattr(SpeakerClassifier, "forward", hungry)
    most = 120
    assert torch.allclose(
        predict_probabilities([trained], corpus, corpus.test, CPU), expected, atol=1e-6
    )
    assert len(sizes) > 1
    most = 20
    with pytest.raises(
        UserError, match=r"an utterance of \d+ frames must fit into the memory of cpu, but does not"
    ):
        predict_probabilities([trained], corpus, corpus.test, CPU)
