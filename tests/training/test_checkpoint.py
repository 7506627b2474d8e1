import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speaker.common.devices import Compute
from speaker.common.errors import UserError
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.checkpoint import (
    MAX_TIME_FRACTION,
    MIN_INTERVAL_S,
    Checkpoint,
    OtherTrainingError,
    TrainingState,
    identity,
)
from speaker.training.metrics import Metrics
from speaker.training.train import TrialResult, train
from tests.helpers import TINY

LONG = TINY.replace(steps=30, valid_every=4)


class Clock:
    """Time that passes by a step at each look."""

    def __init__(self) -> None:
        self.step, self.now = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Restless(Checkpoint):
    """A checkpoint that is due at a share of all steps, drawn at random."""

    share = 1.0
    _draw = random.Random(0)  # noqa: S311  # moments, not secrets

    def due(self) -> bool:
        return self._draw.random() < self.share


class Kill(BaseException):
    pass


def open_checkpoint(path: Path, pack: Pack, share: float = 1.0) -> Checkpoint:
    checkpoint = Restless(path, identity(LONG, pack, Protocol(), torch.float32))
    checkpoint.share = share
    return checkpoint


class KillingBar:
    """Stands where the progress bar does, and kills at a step."""

    def __init__(self, at: int) -> None:
        self.steps, self.at = 0, at

    def update(self, steps: int = 1) -> bool:
        self.steps += steps
        if self.steps >= self.at:
            raise Kill
        return False


def run(
    pack: Pack,
    checkpoint: Checkpoint | None,
    rows: dict[int, Metrics],
    at: int = 10**9,
    compute: Compute = Compute(),  # noqa: B008
) -> TrialResult:
    def report(step: int, metrics: Metrics) -> bool:
        kept = {name: value for name, value in metrics.items() if not name.startswith("speed/")}
        assert rows.setdefault(step, kept) == kept, (
            "an evaluation that was measured again is another"
        )
        return False

    return train(LONG, pack, Protocol(), report, compute, checkpoint, KillingBar(at))


@pytest.mark.parametrize(
    "compute", [Compute(), Compute(precision=torch.bfloat16, threads=2)], ids=("plain", "fast")
)
@pytest.mark.parametrize("share", [1.0, 0.15], ids=("each step", "now and then"))
def test_killed_anywhere_it_ends_the_same_bit_for_bit(
    pack: Pack, tmp_path: Path, compute: Compute, share: float
) -> None:
    rows: dict[int, Metrics] = {}
    whole = run(pack, None, rows, compute=compute)
    again: dict[int, Metrics] = {}
    steps = random.Random(0)  # noqa: S311  # moments, not secrets
    for _ in range(20):
        with pytest.raises(Kill):
            run(
                pack,
                open_checkpoint(tmp_path / "c", pack, share),
                again,
                steps.randint(1, 30),
                compute,
            )
    result = run(pack, open_checkpoint(tmp_path / "c", pack), again, compute=compute)
    assert again == rows
    assert replace(result, seconds=0, weights={}, best={}) == replace(
        whole, seconds=0, weights={}, best={}
    )
    assert result.weights.keys() == whole.weights.keys()
    assert all(torch.equal(result.weights[name], value) for name, value in whole.weights.items())


def test_reports_what_it_holds_once_more_and_heeds_the_last_answer(
    pack: Pack, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tmp_path / "c", pack)
    with pytest.raises(Kill):
        run(pack, checkpoint, {}, at=10)
    heard = []

    def report(step: int, _metrics: Metrics) -> bool:
        heard.append(step)
        return True

    result = train(LONG, pack, Protocol(), report, checkpoint=checkpoint)
    assert heard == [4, 8]
    assert (result.outcome, result.steps) == ("pruned", 9)


def test_is_written_seldom_enough_to_cost_its_share(tmp_path: Path) -> None:
    clock = Clock()
    checkpoint = Checkpoint(tmp_path / "c", {}, clock)
    assert not checkpoint.due()
    clock.now = MIN_INTERVAL_S
    assert checkpoint.due()
    clock.step = 3.0  # writing takes three seconds
    checkpoint.save(TrainingState(), {})
    clock.step = 0.0
    clock.now += 0.99 * 3.0 / MAX_TIME_FRACTION
    assert not checkpoint.due()
    clock.now += 0.02 * 3.0 / MAX_TIME_FRACTION
    assert checkpoint.due()


def test_without_a_path_nothing_is_kept() -> None:
    checkpoint = Checkpoint(None, {}, lambda: 1e9)
    assert not checkpoint.due()
    checkpoint.save(TrainingState(), {})
    assert checkpoint.load() is None
    checkpoint.remove()


@pytest.fixture
def written(pack: Pack, tmp_path: Path) -> Path:
    checkpoint = open_checkpoint(tmp_path / "c", pack)
    with pytest.raises(Kill):
        run(pack, checkpoint, {}, at=6)
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda about: about | {"config.lr": "0.5"}, "config.lr is 0.001 there and 0.5 here"),
        (lambda about: about | {"corpus": "other"}, "corpus is [0-9a-f]+ there and other here"),
        (lambda about: about | {"code": "other"}, "code is [0-9a-f]{12} there and other here"),
        (
            lambda about: about | {"precision": "bfloat16"},
            "precision is float32 there and bfloat16 here",
        ),
        (lambda about: {"torch": about["torch"]}, "config.d_model is 16 there and none here"),
    ],
)
def test_of_another_training_it_is_refused_by_name(
    written: Path, pack: Pack, change: Callable[[dict[str, str]], dict[str, str]], named: str
) -> None:
    about = change(identity(LONG, pack, Protocol(), torch.float32))
    with pytest.raises(OtherTrainingError, match=named):
        Checkpoint(written, about).load()
    assert written.exists()


def test_damaged_it_is_refused(written: Path, pack: Pack) -> None:
    data = written.read_bytes()
    for broken in (
        b"",
        data[:10],
        data[:-1],
        data[:5000],
        bytes([*data[:5000], data[5000] ^ 1, *data[5001:]]),
    ):
        written.write_bytes(broken)
        with pytest.raises(
            UserError, match="must be a whole checkpoint, but is damaged; delete it to start over"
        ):
            open_checkpoint(written, pack).load()


def test_a_full_disk_leaves_the_last_one(
    written: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.read_bytes()

    def fill(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fill)
    with pytest.raises(OSError, match="No space"):
        run(pack, open_checkpoint(written, pack), {})
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["c"]


def test_what_is_no_file_is_refused_and_not_waited_for(pack: Pack, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(UserError, match="must be a"):
            open_checkpoint(tmp_path / name, pack).load()


def test_a_writer_that_was_killed_leaves_nothing_behind_the_end(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / ".c.99.partial").write_bytes(b"half")
    checkpoint = open_checkpoint(tmp_path / "c", pack)
    run(pack, checkpoint, {})
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []
