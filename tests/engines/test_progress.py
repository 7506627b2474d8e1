"""What a search shows while it runs, where there is no terminal and on one of 80 columns."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.context import TrainingContext
from experiments.engines.engine import Moved
from experiments.engines.progress import Forecast, Pace, Progress
from experiments.study.search import WorkerSpec
from experiments.study.trial import StudyContext
from speaker.common.devices import usable_cores
from speaker.config import HOMEWORK_BASELINE
from speaker.training.metrics import ACCURACY_CROPS, ACCURACY_WHOLE
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult
from tests.helpers import PLAN, environment, program

COLUMNS = 80


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_before_any_trial_has_ended_the_plan_says_what_remains(clock: Clock) -> None:
    pace = Pace(10, presets=1, forecast=Forecast(500.0), clock=clock)
    clock.now += 60
    assert (pace.elapsed(), pace.remaining()) == (60, 440)
    pace.ended(0, 100)
    assert (pace.remaining(), pace.interval()) == (440, None), "a preset is not like the others"
    clock.now += 900
    assert pace.remaining() == 0
    assert Pace(10, clock=clock).remaining() is None


def test_what_remains_is_told_by_what_trials_really_took(clock: Clock) -> None:
    pace = Pace(10, presets=1, forecast=Forecast(5000.0), clock=clock)
    for number, seconds in enumerate((300, 10, 20)):
        clock.now += seconds
        pace.ended(number, 100)
    assert pace.interval() == 15
    assert pace.remaining() == 7 * 15
    clock.now += 5
    assert pace.remaining() == 7 * 15 - 5
    clock.now += 500
    assert pace.remaining() == 6 * 15, "a long trial takes nothing from those that have not begun"


def test_of_known_points_each_counts_by_what_it_costs(clock: Clock) -> None:
    plan = Forecast(120.0, {0: 10.0, 1: 10.0, 2: 50.0, 3: 50.0})
    pace = Pace(4, presets=4, forecast=plan, clock=clock)
    assert pace.remaining() == 120
    for number in (0, 1):
        clock.now += 20  # twice what was foretold
        pace.ended(number, 100)
    assert pace.remaining() == 200
    clock.now += 30
    assert pace.remaining() == 170
    clock.now += 120
    assert pace.remaining() == 100, "the last one has not begun"
    pace.ended(2, 100)
    clock.now += 1
    assert pace.remaining() == pytest.approx(50 * 190 / 70 - 1)


def test_what_remains_ends_with_the_timeout_and_the_budget(clock: Clock) -> None:
    pace = Pace(10, timeout=100.0, clock=clock)
    assert pace.remaining() == 100
    clock.now += 30
    pace.ended(0, 100)
    assert pace.remaining() == 70
    spent = Pace(10, steps_left=250, clock=clock)
    for number, steps in enumerate((100, 50)):
        clock.now += 30
        spent.ended(number, steps)
    assert spent.remaining() == 2 * 30, "100 steps are left, of 75 each"
    spent.ended(2, 100)
    assert spent.remaining() == 0


@pytest.fixture
def shared(state: Path, context: TrainingContext) -> StudyContext:
    urls = f"sqlite:///{state}/optuna.db", f"sqlite:///{state}/mlflow.db"
    return WorkerSpec(PLAN, context, *urls).open().shared


def result(whole: float) -> TrialResult:
    best = {ACCURACY_WHOLE: whole, ACCURACY_CROPS: 0.25}
    return TrialResult(Outcome.COMPLETE, steps=4, best=best, seconds=3.21)


def test_without_a_terminal_each_end_is_a_line_and_each_minute(
    shared: StudyContext, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(shared, 50, [], 1, Pace(50, forecast=Forecast(900.0), clock=clock)) as progress:

        def after(seconds: float, steps: int = 1) -> list[str]:
            clock.now += seconds
            for _ in range(steps):
                progress.hear(0, Moved("#0"))
            return capsys.readouterr().out.splitlines()

        assert after(59, steps=5) == []
        assert after(1, steps=5) == ["0/50 trials after 01:00, 14:00 left"]
        progress.ended(0, HOMEWORK_BASELINE, result(0.5))
        assert after(0) == [
            "#0   d80 h2 L1 sigmoid    whole 0.5000  crops 0.2500     3.2 s  complete  1/50  01:00  best"
        ]
        clock.now += 20
        progress.ended(1, HOMEWORK_BASELINE, result(0.4))
        pruned = replace(
            result(0.9), outcome=Outcome.PRUNED, reason="stopped by the search", steps=2
        )
        progress.ended(2, HOMEWORK_BASELINE, pruned)
        failed = TrialResult(Outcome.FAILED, "out of memory", seconds=0.1)
        progress.ended(3, HOMEWORK_BASELINE, failed)
        assert after(0) == [
            "#1   d80 h2 L1 sigmoid    whole 0.4000  crops 0.2500     3.2 s  complete  2/50  01:20",
            "#2   d80 h2 L1 sigmoid    whole 0.9000  crops 0.2500     3.2 s  pruned at 2  3/50  01:20",
            "#3   d80 h2 L1 sigmoid    whole -       crops -          0.1 s  failed  4/50  01:20: out of memory",
        ]
        assert after(39) == []
        assert after(1) == ["4/50 trials after 02:00, 15:00 left, 20.0 s/trial"]
        assert after(30) == []


def run_on_terminal(folder: Path, *words: object) -> str:
    """Run a command of this project on a terminal of 80 columns; return what it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    settings = {
        key: value for key, value in environment().items() if key not in ("COLUMNS", "LINES")
    }
    with subprocess.Popen(
        program(*words), cwd=folder, env=settings, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        written = b"".join(read_terminal(ours))
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


def read_terminal(descriptor: int) -> Iterator[bytes]:
    """Yield what comes until nothing has the terminal open any more."""
    try:
        while chunk := os.read(descriptor, 65536):
            yield chunk
    except OSError:  # Linux's way to say so
        return


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.skipif(usable_cores() < 2, reason="two jobs need two cores"))])  # fmt: skip
def test_on_80_columns_each_bar_is_of_one_trial(home: Path, jobs: int) -> None:
    words = ("search.py", "--data", "corpus", "--trials", 5, "--steps", 6, "--jobs", jobs)
    written = run_on_terminal(home, *words)
    # Whatever moves the cursor to a line's beginning, or up, begins another drawing.
    drawn = [each.rstrip() for each in re.split(r"\r|\n|\x1b\[A", written)]
    assert max(map(len, drawn)) <= COLUMNS
    ended = dict(re.findall(r"#(\d) +(d\d+ h\d+ L\d \w+) +whole", written))
    assert ended.keys() == set("01234")
    bars: dict[str, list[tuple[int, str]]] = {number: [] for number in ended}
    for line in drawn:
        if bar := re.match(r"#(\d) (d\d+ h\d+ L\d \w+) .*?(\d)/6 \d\d:\d\d<[^,\s]+(.*)$", line):
            number, label, step, rest = bar.groups()
            assert label == ended[number], line
            assert re.fullmatch(r"(, loss \d+\.\d\d, best (-|[01]\.\d{4}))?", rest), line
            bars[number].append((int(step), rest))
    for number, shown in bars.items():
        assert shown[0] == (0, ""), f"#{number} begins with the numbers of another"
        assert [step for step, _ in shown] == sorted(step for step, _ in shown)
    assert re.search(r"^5/5 .* 00:00 left, \d+\.\d s/trial, best [01]\.\d{4} #\d d\d+", "\n".join(drawn), re.M)  # fmt: skip
    assert "s/it" not in written
    assert not re.search(r"\d%", written.partition("Study ")[2]), "another notation of accuracy"
