"""What a search shows while it runs: a bar of trials with the best so far,
and a bar of each running trial's steps.
"""

import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Self

from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from experiments.engines.engine import Ended, Moved, Noted, Said
from experiments.study.trial import StudyContext
from speaker.common.cli import printable
from speaker.config import TrialConfig
from speaker.training.metrics import format_accuracy
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult

# Of 80 columns, the bar has what the numbers leave.
TRIALS_FORMAT = "{n_fmt}/{total_fmt} {bar} {elapsed}{desc}"
REFRESH_S = 1.0
QUIET_S = 60.0  # between two lines of how far it is, where there is no terminal


@dataclass(frozen=True)
class Forecast:
    """What missing trials are to take, in seconds of a search that runs several at once."""

    seconds: float  # all of them
    each: Mapping[int, float] = field(default_factory=dict)  # those whose point is known, by number


@dataclass
class Pace:
    """How long a search goes on: by its plan, then by the trials that have ended."""

    left: int  # trials
    at_once: int = 1
    presets: int = 0  # trials of smaller numbers are not like the others
    forecast: Forecast | None = None
    timeout: float | None = None  # seconds
    steps_left: int | None = None  # of a budget
    clock: Callable[[], float] = time.monotonic
    intervals: list[float] = field(default_factory=list)  # seconds between two ends
    steps: list[int] = field(default_factory=list)  # of the same trials

    def __post_init__(self) -> None:
        self._began = self._last = self.clock()
        self._known = dict(self.forecast.each) if self.forecast else {}  # those that have not ended
        self._worth = 0.0  # of the known ones that have ended, by the forecast

    def ended(self, number: int, steps: int) -> None:
        """Note that a trial has ended."""
        now = self.clock()
        self._worth += self._known.pop(number, 0.0)
        if number >= self.presets:
            self.intervals.append(now - self._last)
            self.steps.append(steps)
        if self.steps_left is not None:
            self.steps_left = max(0, self.steps_left - steps)
        self._last = now
        self.left = max(0, self.left - 1)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return self.clock() - self._began

    def interval(self) -> float | None:
        """Return the mean seconds between two ends of trials, once there are some."""
        return mean(self.intervals) if self.intervals else None

    def remaining(self) -> float | None:
        """Return the seconds that the search goes on for, if they can be told."""
        interval, rest = self.interval(), None
        if self._known and len(self._known) >= self.left:
            rest = self._rest_of_known()
        elif interval is not None:
            left = self._trials_left()
            begun = left * interval - (self.clock() - self._last)
            rest = max(begun, (left - self.at_once) * interval, 0.0)
        elif self.forecast is not None:
            rest = max(self.forecast.seconds - self.elapsed(), 0.0)
        if self.timeout is not None:
            until = max(self.timeout - self.elapsed(), 0.0)
            rest = until if rest is None else min(rest, until)
        return rest

    def _rest_of_known(self) -> float:
        """Return the seconds for trials of known points, by the forecast, and by how far that was
        right so far.
        """
        known = sum(self._known.values())
        error = (self._last - self._began) / self._worth if self._worth else 1.0
        longest = max(self._known.values())
        begun = known * error - (self.clock() - self._last)
        return max(begun, (known - self.at_once * longest) * error, 0.0)

    def _trials_left(self) -> int:
        if self.steps_left is None or not (each := mean(self.steps)):
            return self.left
        return min(self.left, math.ceil(self.steps_left / each))


class Progress:
    """Bars on a terminal; elsewhere the line that each trial leaves when it ends, and one a minute
    of how far the search is.
    """

    def __init__(
        self,
        shared: StudyContext,
        planned: int,
        finished: list[FrozenTrial],
        at_once: int = 1,
        pace: Pace | None = None,
    ) -> None:
        self._planned = max(planned, len(finished))
        self._pace = pace or Pace(planned - len(finished), at_once)
        self._ended = len(finished)
        self._trials = tqdm(
            total=self._planned,
            initial=len(finished),
            unit="trial",
            disable=None,
            bar_format=TRIALS_FORMAT,
        )
        self._running: list[tqdm[int]] = [
            tqdm(position=1 + place, leave=False, disable=None, bar_format="{desc}")
            for place in range(at_once)
        ]
        self._best, self._best_name = -1.0, ""
        for trial in finished:
            if trial.state == TrialState.COMPLETE and trial.value is not None:
                label = shared.base.replace(**trial.params).label()
                self._keep_best(f"#{trial.number} {label}", trial.value)
        self._shown = self._said = self._pace.elapsed()
        self._show()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._running:
            bar.close()
        self._trials.close()

    def hear(self, place: int, said: Said) -> None:
        """Show what a worker says."""
        self.tick()
        if isinstance(said, Noted):
            _say(said.text)
            return
        self._running[place].set_description_str(said.text if isinstance(said, Moved) else "")
        if isinstance(said, Ended):
            self.ended(said.number, said.config, said.result)

    def ended(self, number: int, config: TrialConfig, result: TrialResult) -> None:
        """Show a trial's end."""
        self._ended += 1
        self._pace.ended(number, result.steps)
        is_best = result.outcome == Outcome.COMPLETE and self._keep_best(
            f"#{number} {config.label()}", result.scores()[0] or 0.0
        )
        line = f"#{number:<3} {_describe_end(config, result)}"
        if not sys.stdout.isatty():
            line += f"  {self._ended}/{self._planned}  {_in_words(self._pace.elapsed())}"
        line += "  best" * is_best
        is_fair = result.outcome in (Outcome.COMPLETE, Outcome.PRUNED)
        _say(line if is_fair else f"{line}: {result.reason}")
        if result.fallback:
            _say(f"warning: #{number} was not captured as a graph: {result.fallback}")
        self._trials.update()
        self._show()

    def tick(self) -> None:
        """Show how the time goes by; called often while trials run."""
        now = self._pace.elapsed()
        if self._trials.disable:
            if now - self._said >= QUIET_S:
                self._said = now
                _say(f"{self._ended}/{self._planned} trials after {_in_words(now)}{self._rest()}")
        elif now - self._shown >= REFRESH_S:
            self._show()

    def _show(self) -> None:
        self._shown = self._pace.elapsed()
        best = f", best {format_accuracy(self._best)} {self._best_name}" * bool(self._best_name)
        self._trials.set_description_str(f"{self._rest()}{best}")

    def _rest(self) -> str:
        rest, interval = self._pace.remaining(), self._pace.interval()
        left = "" if rest is None else f", {_in_words(rest)} left"
        return left if interval is None else f"{left}, {interval:.1f} s/trial"

    def _keep_best(self, name: str, value: float) -> bool:
        """Note a complete trial's accuracy; tell whether it is the best so far."""
        is_best = value > self._best
        if is_best:
            self._best, self._best_name = value, name
        return is_best


def _describe_end(config: TrialConfig, result: TrialResult) -> str:
    whole, crops = map(format_accuracy, result.scores())
    at = f" at {result.steps}" if result.outcome == Outcome.PRUNED else ""
    return (
        f"{config.label():<20} whole {whole:<6}  crops {crops:<6} {result.seconds:7.1f} s  "
        f"{result.outcome}{at}"
    )


def _in_words(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))


def _say(line: str) -> None:
    """Print a line above the bars, in lines of the terminal's width if there is one."""
    line = printable(line)
    if sys.stdout.isatty():
        line = textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent="     ")
    tqdm.write(line)
    sys.stdout.flush()
