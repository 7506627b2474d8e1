import hashlib
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from speaker.common.devices import Compute
from speaker.common.errors import UserError
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.checkpoint import (
    ABOUT,
    MAX_TIME_FRACTION,
    MIN_INTERVAL_S,
    Checkpoint,
    OtherTrainingError,
    TrainingState,
    identity,
    is_whole,
)
from speaker.training.metrics import Metrics
from speaker.training.saved_state import Expected
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
            UserError,
            match="must be a whole checkpoint, but is damaged .its sha256 .*; delete it to start over",
        ):
            open_checkpoint(written, pack).load()


@pytest.fixture
def expected(pack: Pack) -> Expected:
    return Expected(LONG, pack, Protocol(), torch.float32)


def rewritten(path: Path, edit: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Change what a checkpoint holds, its JSON or its tensors, and its digest with it."""
    tensors = load(path.read_bytes()[32:])
    about = json.loads(bytes(tensors.pop(ABOUT).numpy()))
    edit(about["state"], tensors)
    text = json.dumps(about).encode()
    data = save({ABOUT: torch.frombuffer(bytearray(text), dtype=torch.uint8), **tensors})
    path.write_bytes(hashlib.sha256(data).digest() + data)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda _, tensors: tensors.pop("learner/weights"), "state lack 'weights'"),
        (lambda _, tensors: tensors.pop("best/project.bias"), "lack 'project.bias'"),
        (lambda _, tensors: put(tensors, "learner/more", torch.ones(3)), "must not have 'more'"),
        (lambda _, tensors: put(tensors, "learner/totals", torch.ones(3)), "totals in .* is .*3"),
        (
            lambda _, tensors: put(tensors, "learner/totals", torch.ones(2).double()),
            "totals in .* is torch.float64",
        ),
        (lambda _, tensors: put(tensors, "learner/count", torch.ones(2)), "count is none"),
        (lambda _, tensors: put(tensors, "learner/scale", torch.tensor(-1.0)), "scale is none"),
        (
            lambda _, tensors: put(tensors, "learner/random.cpu", torch.zeros(3).byte()),
            "random.cpu holds no random numbers",
        ),
        (
            lambda _, tensors: put(tensors, "learner/random.cuda", torch.ones(16).byte()),
            "random.cuda holds no random numbers",
        ),
        (lambda state, _: state.update(step=-1), "step -1 is none of its 30"),
        (lambda state, _: state.update(step=31), "step 31 is none of its 30"),
        (lambda state, _: state.update(step="6"), "state.step is wrong"),
        (lambda state, _: state.update(step=True), "state.step is wrong"),
        (lambda state, _: state.update(step=9), "evaluations are not those up to step 9"),
        (lambda state, _: state.update(last=3), "last evaluation"),
        (lambda state, _: state.update(seconds=-1.0), "it took -1.0 s"),
        (lambda state, _: state.update(seconds=float("nan")), "NaN is not a number"),
        (lambda state, _: state.update(seconds=None), "state.seconds is wrong"),
        (lambda state, _: state.update(best_step=2), "best evaluation is not that of step 2"),
        (lambda state, _: state.update(hits="zz"), "hits cannot be read"),
        (lambda state, _: state["told"].pop(), "one label for each"),
        (lambda state, _: put(state["told"], 0, -1), "labels is no speaker's"),
        (lambda state, _: state.update(rows=[[4, []]]), "is wrong"),
        (lambda state, _: state.update(rows=[[4, {}]]), "has no accuracy/whole"),
        (lambda state, _: state.update(rows=3), "is wrong"),
    ],
)
def test_a_state_that_no_training_has_is_refused_as_damaged(
    written: Path,
    pack: Pack,
    expected: Expected,
    edit: Callable[[dict[str, Any], dict[str, Tensor]], object],
    named: str,
) -> None:
    which = identity(LONG, pack, Protocol(), torch.float32)
    whole = Checkpoint(written, which, expected=expected).load()
    assert whole is not None
    assert whole[0].step == 5
    rewritten(written, edit)
    with pytest.raises(UserError, match=f"but is damaged .*{named}.*; delete it to start over"):
        Checkpoint(written, which, expected=expected).load()


def test_what_a_gpu_keeps_besides_is_taken(written: Path, expected: Expected, pack: Pack) -> None:
    def add(_state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["learner/count"] = torch.tensor(5.0)
        tensors["learner/scale"] = torch.tensor(65_536.0)
        tensors["learner/streak"] = torch.tensor(3, dtype=torch.int32)
        tensors["learner/random.cuda"] = torch.tensor([7] * 8 + [4] + [0] * 7, dtype=torch.uint8)
        tensors["learner/random.cpu"] = torch.get_rng_state()

    rewritten(written, add)
    which = identity(LONG, pack, Protocol(), torch.float32)
    assert Checkpoint(written, which, expected=expected).load() is not None


def test_more_than_the_training_can_have_is_not_read(
    written: Path, pack: Pack, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert written.stat().st_size < expected.max_bytes() < 2 << 20
    os.truncate(written, 3 << 30)  # most of it was never written
    which = identity(LONG, pack, Protocol(), torch.float32)
    monkeypatch.setattr("hashlib.sha256", None)  # nothing is looked at
    with pytest.raises(UserError, match="must have at most .* but has 3,221,225,472; delete it"):
        Checkpoint(written, which, expected=expected).load()


def put(container: Any, key: Any, value: object) -> None:
    container[key] = value


def test_a_large_damaged_one_is_seen_through_in_pieces(written: Path) -> None:
    assert is_whole(written)
    os.truncate(written, 64 << 20)  # a hole is read as zeros
    tracemalloc.start()
    try:
        assert not is_whole(written)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_full_disk_leaves_the_last_one_and_the_training_goes_on(
    written: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written.read_bytes()

    def fill(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fill)
    rows: dict[int, Metrics] = {}
    run(pack, open_checkpoint(written, pack), rows)
    assert max(rows) == LONG.steps
    assert capsys.readouterr().out == (
        "training goes on, though its checkpoint cannot be written: [Errno 28] No space left on "
        "device\n"
    )
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
