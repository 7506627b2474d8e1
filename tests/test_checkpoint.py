import json
from pathlib import Path

import pytest
import torch

from speaker.checkpoint import CARD, CONFIG, WEIGHTS, load_model, save_model
from speaker.errors import UserError
from speaker.model import SpeakerClassifier
from tests.helpers import TINY

SPEAKERS = ("id0", "id1", "id2")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, SpeakerClassifier]:
    torch.manual_seed(0)
    model = SpeakerClassifier(TINY, 40, 3).eval()
    save_model(tmp_path / "model", model.state_dict(), TINY, 40, SPEAKERS, "digest")
    return tmp_path / "model", model


def test_comes_back_as_it_was(saved: tuple[Path, SpeakerClassifier]) -> None:
    folder, model = saved
    trained = load_model(folder)
    assert (trained.config, trained.n_mels, trained.speakers, trained.corpus_digest) == (TINY, 40, SPEAKERS, "digest")
    mels = torch.randn(2, 30, 40)
    assert torch.equal(trained.model(mels), model(mels))
    assert not trained.model.training
    assert sorted(path.name for path in folder.iterdir()) == sorted((WEIGHTS, CONFIG, CARD))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CARD])
def test_a_missing_or_broken_file_is_refused(saved: tuple[Path, SpeakerClassifier], name: str) -> None:
    folder, _ = saved
    whole = (folder / name).read_bytes()
    for broken in (b"", whole[:-3], b"{}", b"[1]"):
        (folder / name).write_bytes(broken)
        with pytest.raises(UserError) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_model(folder)


def test_other_weights_are_refused(saved: tuple[Path, SpeakerClassifier]) -> None:
    folder, _ = saved
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match="sha256"):
        load_model(folder)


def test_a_config_of_another_shape_is_refused(saved: tuple[Path, SpeakerClassifier]) -> None:
    folder, _ = saved
    (folder / CONFIG).write_text(json.dumps({**TINY.to_dict(), "num_layers": 2}))
    with pytest.raises(UserError, match="cannot be read"):
        load_model(folder)
