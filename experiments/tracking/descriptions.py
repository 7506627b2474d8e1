"""What the UI says above a trial's run and a study's, in Markdown: the score and how sure it is,
what it is to be compared with, how to use the model, and what it cannot do.
"""

import re
from collections.abc import Mapping

from experiments.tracking import names
from speaker.config import HOMEWORK_BASELINE, TrialConfig
from speaker.training.metrics import ACCURACY_CROPS, ACCURACY_WHOLE, format_accuracy, wilson
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult

BOARD, PAGE = "The trials, the best first", "The study's report"  # the links that end ours
_LAST_LINE = re.compile(rf"\[({BOARD}|{PAGE})\]\(#/\S+\)")
MEANING = f"The metric `{names.BEST_WHOLE}` is the best accuracy after so many ended trials."
SEARCHING = "This search has not ended, or was cut off: then the same command goes on with it. "
SEARCHING += MEANING
ENDED = f"This search has ended. {MEANING}"


def describe_trial(
    result: TrialResult,
    config: TrialConfig,
    counts: tuple[int, int],
    run_id: str,
    baseline: float | None = None,
) -> str:
    """Return a trial that ended. `counts` are the validation utterances and the speakers;
    `baseline` is the accuracy of the homework's first point under the same budget, if known.
    """
    if not result.best:
        return f"No score: {result.outcome}. {result.reason}".strip()
    whole, crops = result.best[ACCURACY_WHOLE], result.best[ACCURACY_CROPS]
    utterances, speakers = counts
    low, high = wilson(whole, utterances)
    spent = f"{result.parameters:,} parameters, {result.seconds:,.1f} s of training"
    return "\n".join(
        [
            f"**{format_accuracy(whole)}** on {utterances:,} whole validation utterances (90 % "
            f"interval {low:.3f} to {high:.3f}), {result.outcome}.",
            "",
            f"- Compare: {_baseline(config, baseline)}{_guessing(speakers)}",
            f"- By crops, as the homework prints it: {format_accuracy(crops)}. Best at step "
            f"{result.best_step:,} of {config.steps:,}; {spent}.",
            f"- Use: {_use(result, run_id)}",
            f"- Limits: {_limits(speakers)} The score is one seed's, at the best of its "
            "evaluations, chosen by the same utterances: it flatters.",
        ]
    )


def study_notes(tags: Mapping[str, str]) -> str:
    """Return what holds of a study however it ends, by the tags of its run."""
    study, lines = tags[names.STUDY], []
    if names.UTTERANCES in tags and names.SPEAKERS in tags:
        speakers = int(tags[names.SPEAKERS])
        lines += [
            f"- Measured on {int(tags[names.UTTERANCES]):,} validation utterances of the corpus "
            f"{tags.get('corpus', '')}; {_guessing(speakers)}",
            f"- Limits: {_limits(speakers)} The best of many noisy accuracies flatters: `python -m "
            f"experiments confirm --study {study}` trains it on fresh seeds.",
        ]
    lines.append(
        f"- Use the best: `python -m experiments promote --study {study}`, then `python -m speaker "
        "predict --data CORPUS --model champion`"
    )
    return "\n".join(lines)


def is_ours(description: str) -> bool:
    """Tell whether a study's description was written by this program alone, or by nobody."""
    last = description.rstrip().rpartition("\n")[2]
    return not last or bool(_LAST_LINE.fullmatch(last))


def _baseline(config: TrialConfig, accuracy: float | None) -> str:
    if config.label() == HOMEWORK_BASELINE.label():
        return "this is the homework's baseline point; "
    if accuracy is None:
        return ""
    return f"the homework's baseline point had {format_accuracy(accuracy)} under the same budget; "


def _guessing(speakers: int) -> str:
    return f"guessing among {speakers:,} speakers scores {format_accuracy(1 / speakers)}."


def _use(result: TrialResult, run_id: str) -> str:
    if result.outcome != Outcome.COMPLETE:
        return "none, since it was not trained to its end; the weights are kept to be looked at."
    return (
        f"`python -m experiments fetch --model {run_id} --out FOLDER`, then `python -m speaker "
        "predict --data CORPUS --model FOLDER`"
    )


def _limits(speakers: int) -> str:
    return (
        f"it names one of these {speakers:,} speakers and nobody else, and was scored on "
        "recordings like those it learned from."
    )
