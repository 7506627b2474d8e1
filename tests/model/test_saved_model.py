import json
import os
from pathlib import Path

import pytest
import torch

from speaker.common.errors import UserError
from speaker.model.classifier import SpeakerClassifier
from speaker.model.saved_model import CARD, CONFIG, SOURCE, WEIGHTS, load_model, save_model
from tests.helpers import TINY, refused

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
    assert (trained.config, trained.n_mels, trained.speakers, trained.corpus_digest) == (
        TINY,
        40,
        SPEAKERS,
        "digest",
    )
    mels = torch.randn(2, 30, 40)
    assert torch.equal(trained.model(mels), model(mels))
    assert not trained.model.training
    assert sorted(path.name for path in folder.iterdir()) == sorted((WEIGHTS, CONFIG, CARD))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CARD])
def test_a_missing_or_broken_file_is_refused(
    saved: tuple[Path, SpeakerClassifier], name: str
) -> None:
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


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 2},
        {"activation": "tanh"},
        {"d_model": 16_384},
        {"num_layers": 10_000_000},
        {"nhead": 4},
    ],
)
def test_another_config_is_refused_without_building_it(
    saved: tuple[Path, SpeakerClassifier], changes: dict[str, object]
) -> None:
    folder, _ = saved
    config = TINY.replace(**changes)
    (folder / CONFIG).write_text(config.to_json())
    with pytest.raises(UserError, match=f"{CONFIG} must be the config that"):
        load_model(folder)
    # These have weights of the same shapes.
    if changes not in ({"activation": "tanh"}, {"nhead": 4}):
        edit(folder / CARD, sha256="", config=config.fingerprint())
        with pytest.raises(UserError, match="cannot be read|must hold the weights"):
            load_model(folder)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [{"format": 1}, {"format": True}, {"n_mels": 40.5}, {"n_mels": "40"}, {"n_mels": 0}, {"n_mels": 10**9},
     {"n_mels": 2**63 - 1}, {"n_mels": 10**30},
     {"speakers": {"id0": 1}}, {"speakers": [1, 2, 3]}, {"speakers": ["id0"]}, {"weights_sha256": None},
     {"config": None}, {"speakers": ["id0", "id0", "id1"]}, {"speakers": ["", "id1", "id2"]}],
)  # fmt: skip
def test_a_card_that_lies_is_refused(
    saved: tuple[Path, SpeakerClassifier], changes: dict[str, object]
) -> None:
    folder, _ = saved
    edit(folder / CARD, sha256="", **changes)
    with pytest.raises(UserError):
        load_model(folder)


@pytest.mark.parametrize(
    "changes", [{"speakers": [*SPEAKERS[::-1]]}, {"corpus": "another"}, {"sha256": "0" * 64}]
)
def test_a_card_that_was_changed_is_noticed(
    saved: tuple[Path, SpeakerClassifier], changes: dict[str, object]
) -> None:
    folder, _ = saved
    edit(folder / CARD, **changes)
    assert refused(lambda: load_model(folder)).startswith(
        f"{folder / CARD} must be as it was written, but was changed"
    )
    edit(folder / CARD, **{**changes, "sha256": ""})
    assert load_model(folder).speakers == tuple(changes.get("speakers", SPEAKERS))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    saved: tuple[Path, SpeakerClassifier], value: float
) -> None:
    folder, model = saved
    weights = model.state_dict()
    weights["hidden.bias"][0] = value
    save_model(folder, weights, TINY, 40, SPEAKERS, "digest")
    with pytest.raises(UserError, match="must be finite"):
        load_model(folder)


def test_weights_of_another_precision_are_refused(saved: tuple[Path, SpeakerClassifier]) -> None:
    folder, model = saved
    save_model(
        folder,
        {key: value.double() for key, value in model.state_dict().items()},
        TINY,
        40,
        SPEAKERS,
        "digest",
    )
    with pytest.raises(
        UserError, match="project.weight must be torch.float32, but is torch.float64"
    ):
        load_model(folder)


def sparse(path: Path) -> None:
    """Make a file of 3 GB that was hardly written."""
    path.touch()
    os.truncate(path, 3 << 30)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CARD, SOURCE])
def test_a_file_that_is_none_is_not_waited_for(
    saved: tuple[Path, SpeakerClassifier], name: str
) -> None:
    folder, _ = saved
    for make in (
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_text("null"),
        sparse,
    ):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(UserError):
            load_model(folder)
