from collections import Counter
from pathlib import Path

import pytest
import torch

from speaker.data.corpus import Corpus, read_corpus, read_mels
from speaker.data.labels import read_labels
from speaker.sources.demo import (
    SPEAKERS,
    TEST_PER_SPEAKER,
    TRAIN_PER_SPEAKER,
    build_demo,
    draw_voice,
    synthesize,
)


@pytest.mark.slow
def test_is_a_corpus_in_the_homeworks_layout(demo: Corpus) -> None:
    assert len(demo.speakers) == SPEAKERS
    assert len(demo.utterances) == SPEAKERS * TRAIN_PER_SPEAKER
    assert len(demo.test) == SPEAKERS * TEST_PER_SPEAKER
    assert demo.n_mels == 40
    for utterance in demo.utterances[::97]:
        assert read_mels(demo, utterance).std() > 1


@pytest.mark.slow
def test_is_the_same_for_the_same_seed(demo: Corpus, tmp_path: Path) -> None:
    build_demo(tmp_path / "again")
    again = read_corpus(tmp_path / "again")
    assert again.key == demo.key
    assert torch.equal(read_mels(again, again.utterances[5]), read_mels(demo, demo.utterances[5]))


def test_the_order_of_test_utterances_does_not_give_their_speaker_away(demo: Corpus) -> None:
    names = [utterance.feature_path for utterance in demo.test]
    assert names == sorted(names)


def test_the_speakers_of_its_test_utterances_are_known(demo: Corpus) -> None:
    labels = read_labels(demo)
    assert labels
    assert set(Counter(labels).values()) == {TEST_PER_SPEAKER}
    means = [
        torch.stack(
            [read_mels(demo, each).mean(0) for each in demo.utterances if each.speaker == n]
        )
        for n in range(SPEAKERS)
    ]
    centres = torch.stack([each.mean(0) for each in means])
    nearest = [int((centres - read_mels(demo, each).mean(0)).square().sum(1).argmin())
               for each in demo.test]  # fmt: skip
    right = [demo.speakers[n] == label for n, label in zip(nearest, labels, strict=True)]
    assert sum(right) > len(labels) / SPEAKERS * 3, "far more than by chance"


def test_a_simple_classifier_tells_some_but_not_all_speakers(demo: Corpus) -> None:
    """Mean and deviation of a speaker's frames, nearest class mean: far above chance,
    far below the best encoder.
    """
    train: dict[int, list[torch.Tensor]] = {}
    held: list[tuple[int, torch.Tensor]] = []
    for number, utterance in enumerate(demo.utterances):
        mels = read_mels(demo, utterance)
        speaker = utterance.speaker or 0
        summary = torch.cat((mels.mean(0), mels.std(0)))
        held.append((speaker, summary)) if number % 10 == 0 else train.setdefault(
            speaker, []
        ).append(summary)
    means = torch.stack([torch.stack(train[speaker]).mean(0) for speaker in range(SPEAKERS)])
    hits = [int((means - summary).square().sum(1).argmin()) == speaker for speaker, summary in held]
    accuracy = sum(hits) / len(hits)
    assert 2 / SPEAKERS < accuracy < 0.6, accuracy


def test_a_voice_has_its_pitch() -> None:
    voice = draw_voice("somebody")
    wave = synthesize(voice, "words")
    assert wave.abs().max() == pytest.approx(10 ** (-3 / 20), rel=1e-4)
    assert 60 < voice.pitch < 400
