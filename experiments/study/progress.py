"""What a search shows while it runs: a bar of trials with the best so far,
and a bar of each running trial's steps.
"""

from typing import Self

from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from experiments.study.trial import StudyContext
from speaker.config import TrialConfig
from speaker.training.metrics import format_accuracy
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult


class Progress:
    """Bars on a terminal; elsewhere only the line that each trial leaves when it ends."""

    def __init__(
        self, shared: StudyContext, planned: int, finished: list[FrozenTrial], at_once: int = 1
    ) -> None:
        self._trials = tqdm(
            total=max(planned, len(finished)), initial=len(finished), desc="trials", disable=None
        )
        shown = None if at_once == 1 else "{desc}"  # other processes make the text
        self.running: list[tqdm[int]] = [
            tqdm(
                total=shared.base.steps,
                position=1 + place,
                leave=False,
                unit="step",
                disable=None,
                bar_format=shown,
            )
            for place in range(at_once)
        ]
        self._best = -1.0
        for trial in finished:
            if trial.state == TrialState.COMPLETE and trial.value is not None:
                self._keep_best(
                    trial.number, shared.base.replace(**trial.params).label(), trial.value
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.running:
            bar.close()
        self._trials.close()

    def ended(self, number: int, config: TrialConfig, result: TrialResult) -> None:
        """Show a trial's end."""
        whole, crops = map(format_accuracy, result.scores())
        line = (
            f"#{number:<3} {config.label():<22} whole {whole}  crops {crops}  "
            f"{result.seconds:6.1f} s  {result.outcome}"
        )
        tqdm.write(f"{line}: {result.reason}" if result.reason else line)
        if result.fallback:
            tqdm.write(f"warning: #{number} was not captured as a graph: {result.fallback}")
        if result.outcome == Outcome.COMPLETE:
            self._keep_best(number, config.label(), result.scores()[0] or 0.0)
        self._trials.update()

    def _keep_best(self, number: int, label: str, value: float) -> None:
        if value > self._best:
            self._best = value
            self._trials.set_postfix_str(f"best {value:.4f}: #{number} {label}")
