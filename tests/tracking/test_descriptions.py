from dataclasses import replace

import pytest

from experiments.tracking.descriptions import describe_trial, is_ours
from speaker.config import HOMEWORK_BASELINE, HOMEWORK_EDITED
from speaker.training.metrics import ACCURACY_CROPS, ACCURACY_WHOLE
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult

RESULT = TrialResult(
    Outcome.COMPLETE,
    steps=100,
    best_step=80,
    best={ACCURACY_WHOLE: 0.59, ACCURACY_CROPS: 1 / 3},
    parameters=125_896,
    seconds=5.26,
)


def test_a_trial_says_its_score_what_to_compare_it_with_and_how_to_use_it() -> None:
    first, _, *lines = describe_trial(RESULT, HOMEWORK_EDITED, (100, 20), "abc", 0.29).split("\n")
    assert first == (
        "**0.5900** on 100 whole validation utterances (90 % interval 0.508 to 0.667), complete."
    )
    compare, measured, use, limits = lines
    assert "the homework's baseline point had 0.2900 under the same budget" in compare
    assert "guessing among 20 speakers scores 0.0500" in compare
    assert "by crops" in measured.lower()
    assert "0.3333" in measured
    assert "125,896 parameters, 5.3 s" in measured
    assert "step 80 of" in measured
    assert "python -m experiments fetch --model abc --out FOLDER" in use
    assert "20 speakers and nobody else" in limits


def test_the_baseline_is_not_compared_with_itself() -> None:
    text = describe_trial(RESULT, HOMEWORK_BASELINE, (100, 20), "abc", 0.29)
    assert "this is the homework's baseline point" in text
    assert "0.2900" not in text


@pytest.mark.parametrize("outcome", [Outcome.PRUNED, Outcome.COLLAPSED])
def test_a_trial_that_was_not_trained_to_its_end_is_not_for_use(outcome: Outcome) -> None:
    text = describe_trial(replace(RESULT, outcome=outcome), HOMEWORK_EDITED, (100, 20), "abc")
    assert f"{outcome}." in text
    assert "fetch" not in text
    assert "baseline" not in text


def test_a_trial_without_a_score_says_why() -> None:
    failed = TrialResult(Outcome.INFEASIBLE, "out of memory")
    text = describe_trial(failed, HOMEWORK_EDITED, (100, 20), "abc", 0.29)
    assert text == "No score: infeasible. out of memory"


@pytest.mark.parametrize(
    ("description", "ours"),
    [
        ("", True),
        ("It won.\n\n[The study's report](#/experiments/1/runs/a/artifacts/report.html)\n", True),
        ("It runs.\n\n[The trials, the best first](#/experiments/1/runs?a=b)", True),
        ("It won.\n\n[The study's report](#/experiments/1) I doubt it (a lot)", False),
        ("Mine.", False),
    ],
)
def test_a_description_is_ours_while_its_last_line_is_our_link(
    description: str, ours: bool
) -> None:
    assert is_ours(description) is ours
