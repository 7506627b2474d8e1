"""What a worker does, whichever engine has started it."""

import io
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

from tqdm import tqdm

from experiments.engines.engine import Ended, Failed, Moved, Noted, Said
from experiments.study.search import RESUME, StudyWorker, WorkerSpec
from experiments.study.trial import STORE_FAILURES, run_trial
from experiments.tracked_training import explaining_failures
from speaker.common.cuda import noticing_loss
from speaker.common.devices import configure_process
from speaker.common.errors import DeviceLostError, UserError
from speaker.common.signals import uninterrupted

FORMAT = "{desc} {bar} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
AT_ONCE_S, SELDOM_S = 0.1, 1.0  # between two looks of a bar, on a terminal and elsewhere


def work(worker: StudyWorker, say: Callable[[Said], None]) -> None:
    """Run trials of a study until nothing is left to do or time is up, and say how that goes.

    Raises UserError for a store or disk that failed.
    """
    with (
        explaining_failures(RESUME, STORE_FAILURES),
        uninterrupted(),
        WorkerBar(say, total=worker.spec.settings.base.steps) as bar,
    ):
        worker.say_by(bar.write)
        for trial in worker.trials():
            if ended := run_trial(worker.shared, trial, bar):
                config, result = ended
                say(Ended(trial.number, config, replace(result, weights={})))


def work_apart(find_spec: Callable[[], WorkerSpec], say: Callable[[Said | Failed], None]) -> None:
    """Be a worker outside the process that was called, and tell that what keeps it from going on.

    An interruption passes through.
    """
    try:
        spec = find_spec()
        with noticing_loss(spec.context.compute.device):
            configure_process(spec.context.compute)
        work(spec.open_patiently(lambda text: say(Noted(text))), say)
    except UserError as error:
        say(Failed(str(error), is_lost=isinstance(error, DeviceLostError)))
    except Exception:
        say(Failed(traceback.format_exc(), is_bug=True))


class WorkerBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar of a trial's steps that says how it looks instead of being drawn."""

    def __init__(self, say: Callable[[Said], None], total: int) -> None:
        self._say = say
        super().__init__(
            total=total,
            unit="step",
            leave=False,
            file=io.StringIO(),
            ncols=shutil.get_terminal_size().columns - 1,  # the last one would break the line
            mininterval=AT_ONCE_S if sys.stderr.isatty() else SELDOM_S,
            bar_format=FORMAT,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002  # tqdm's names
        """Say what would be shown."""
        self._say(Moved(str(self) if msg is None else msg))

    def write(self, s: str) -> None:  # a note above the bars
        """Say a line."""
        self._say(Noted(s))
