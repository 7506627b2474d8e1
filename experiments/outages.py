"""Stores and disks that fail for a while: what is asked of them is asked again until they answer.

That is safe for whatever a worker writes, because a kill may cut it anywhere, and all of it can be
written again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from experiments.tracking.access import explain_failure, will_pass
from speaker.common.signals import interruptible

T = TypeVar("T")
HOUR_S = 3600.0
FIRST_S, LONGEST_S = 0.5, 15.0  # between two tries


@dataclass(frozen=True)
class Patience:
    """How long failing stores are waited for, and who hears of it."""

    seconds: float = HOUR_S
    failures: tuple[type[Exception], ...] = (OSError,)  # that may pass
    say: Callable[[str], None] = tqdm.write
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def insist(self, call: Callable[[], T]) -> T:
        """Return what `call` returns; while it fails in a way that may pass, wait and call again.

        When patience is at its end the failure passes through, as any other does at once.
        """
        began, pause = self.clock(), FIRST_S
        while True:
            try:
                answer = call()
            except self.failures as error:
                waited = self.clock() - began
                if not will_pass(error) or waited >= self.seconds:
                    raise
                if pause == FIRST_S:
                    self.say(
                        f"waiting, for up to {in_words(self.seconds)}: {explain_failure(error)}"
                    )
            else:
                if pause > FIRST_S:
                    self.say(f"it answers again after {in_words(self.clock() - began)}")
                return answer
            with interruptible():
                self.sleep(min(pause, self.seconds - waited))
            pause = min(2 * pause, LONGEST_S)


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.0f} s"
