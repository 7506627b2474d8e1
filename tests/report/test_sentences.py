from dataclasses import replace

import pytest

from experiments.analysis.confirmation import Confirmation, Confirmed
from experiments.proposals.curves import Estimate
from experiments.report import sentences
from experiments.report.levels import importances
from experiments.report.study import Study
from experiments.report.words import between, duration, listed, many
from speaker.training.metrics import wilson
from tests.report.rows import ended, mixed, trial

STUDY = Study("s", mixed())


def test_the_winner_is_told_with_interval_gain_size_and_time() -> None:
    assert sentences.headline(STUDY) == (
        "d256 h2 L1 relu won with 0.800, the homework's baseline has 0.500"
    )
    assert sentences.what_won(STUDY) == (
        "#3 (d256 h2 L1 relu) won: it had 0.800 on 100 validation utterances (90 % interval 0.727 "
        "to 0.858), with 4,000 parameters, after 40 s. That is +30.0 points against the homework's "
        "baseline point under the same budget (#0, 0.500), more than luck explains."
    )


def test_a_gain_may_be_luck_or_nothing() -> None:
    winner, *others = STUDY.rows
    lucky = [winner, *(replace(row, is_tied=True) for row in others)]
    assert sentences.what_won(Study("s", lucky)).endswith("which is no more than luck explains.")
    old = [replace(row, hits=(), expected=None) for row in STUDY.rows]
    said = sentences.what_won(Study("s", old))
    assert "on the valid part, with" in said
    assert said.endswith("(#0, 0.500).")
    assert "was not trained to the end" in sentences.what_won(Study("s", [winner]))
    own = Study("s", [trial(0, 0.9, preset="homework-baseline")])
    assert sentences.headline(own) == "The homework's baseline point won with 0.900"
    assert sentences.what_won(own).endswith("It is the homework's baseline point.")


def test_the_baseline_is_the_first_of_the_homeworks_first_points() -> None:
    again = trial(9, 0.7, preset="homework-baseline")
    edited = trial(1, 0.6, preset="homework-edited")
    assert Study("s", [again, edited, trial(0, 0.5, preset="homework-baseline")]).baseline == (
        trial(0, 0.5, preset="homework-baseline")
    )
    corner = trial(4, 0.3, preset="four-edits")
    other = trial(2, 0.4, preset="four-edits", values={"nhead": 16})
    assert Study("s", [other, corner, trial(1, 0.2)]).baseline == corner


def test_a_share_has_wilsons_interval() -> None:
    """Against the figures of Wilson's formula, worked out by hand for z = 1.645."""
    assert wilson(0.5, 100) == pytest.approx((0.41884, 0.58116), abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx((0.78703, 1.0), abs=1e-5)


def test_ties_and_what_to_expect_are_told() -> None:
    assert sentences.is_it_real(STUDY) == (
        "On new utterances of these speakers expect 0.780 of #3, nine times out of ten 0.764 to "
        "0.796. The utterances cannot tell it from 1 of the 3 other complete trials (McNemar's "
        "test, p > 0.1): #2."
    )
    clear = [replace(row, is_tied=False) for row in STUDY.rows]
    assert sentences.is_it_real(Study("s", clear)).endswith(
        "other 3 complete trials is worse beyond luck."
    )
    assert "only complete trial" in sentences.is_it_real(Study("s", STUDY.rows[:1]))
    old = [replace(row, expected=None, hits=()) for row in STUDY.rows]
    assert "luck cannot be judged" in sentences.is_it_real(Study("s", old))


def test_repeats_are_other_seeds_of_one_point() -> None:
    rows = [trial(0, 0.5, values={"seed": 1}), trial(1, 0.6, values={"seed": 2}),
            trial(2, 0.9, values={"lr": 0.1})]  # fmt: skip
    assert sentences.what_repeats_say(Study("s", rows)) == (
        "1 point had more than one seed, up to 10.0 points of accuracy apart: d80 h2 L1 sigmoid "
        "0.500, 0.600."
    )
    assert sentences.what_repeats_say(Study("s", rows[1:])) == ""


def test_a_confirmation_is_told_with_its_ties() -> None:
    best = Confirmed("d256", (0.7, 0.72), 0.0, 0.01)
    tied, worse = Confirmed("d128", (0.69, 0.71), 0.01, 0.02), Confirmed("d80", (0.5,), 0.2, 0.1)
    found = Confirmation([best, tied, worse], Estimate(0.7, 0.02))
    said = sentences.what_was_confirmed(replace(STUDY, confirmation=found, confirmed_by="s-c"))
    assert "(s-c), d256 is best of 3 with a mean of 0.710; expect 0.700" in said
    assert said.endswith("It cannot be told from d128.")
    assert "not confirmed" in sentences.what_was_confirmed(STUDY)


def test_the_way_is_told_by_ends_and_by_the_last_record() -> None:
    assert sentences.how_it_got_there(STUDY) == (
        "The last better accuracy came with trial #3; 4 later ones brought none. 8 trials ended: "
        "4 complete, 1 stopped early, 1 collapsed, 1 cannot be trained, 1 failed."
    )
    assert "it was the last one" in sentences.how_it_got_there(Study("s", STUDY.rows[:2]))


def test_what_mattered_names_the_best_and_the_worst_value() -> None:
    rows = [trial(n, 0.4 + 0.2 * (n % 2) + n / 1000, values={"nhead": 1 + n % 2}) for n in range(8)]
    said = sentences.what_mattered(Study("s", rows), importances(rows))
    assert said.startswith("Most of all nhead, which goes with 100 ± 0 % of the differences")
    assert said.endswith("a mean of 0.604 with 2, of 0.403 with 1.")
    noise = [replace(row, whole=0.5 + (n * n % 7) / 70) for n, row in enumerate(rows)]
    assert sentences.what_mattered(Study("s", noise), importances(noise)).startswith("No parameter")
    assert "too few" in sentences.what_mattered(Study("s", rows[:1]), [])


def test_pairs_that_were_never_tried_are_counted() -> None:
    rows = [
        trial(0, values={"nhead": 1, "d_model": 80}),
        trial(1, values={"nhead": 2, "d_model": 96}),
    ]
    said = sentences.what_goes_together(Study("s", rows), ["nhead", "d_model"])
    assert said.startswith("Of the 4 pairs of nhead and d_model, 2 were trained")


def test_what_is_as_good_and_cheaper_is_named() -> None:
    said = sentences.what_it_costs(STUDY)
    assert said == (
        "#2 (d128 h2 L1 relu) is as good within luck with 3,000 parameters instead of 4,000; #2 "
        "(d128 h2 L1 relu) trained in 30 s instead of 40 s."
    )
    alone = sentences.what_it_costs(Study("s", [trial(0)]))
    assert alone.endswith("is smaller than the winner; none trained faster.")


def test_curves_that_rise_to_the_end_are_counted() -> None:
    flat = trial(1, 0.5, curve=((0.5, 0.5), (1.0, 0.5)))
    rows = [trial(0, 0.6), flat, trial(2, 0.5, curve=((1.0, 0.5),)), ended(3, "pruned", 0.9)]
    said = sentences.would_longer_help(Study("s", rows))
    assert said == (
        "1 of 2 complete trials (50 %) were still at their best at the last evaluation: a longer "
        "budget may change the order. The winner still rose."
    )
    said = sentences.would_longer_help(Study("s", [flat, *rows[1:]]))
    assert said.startswith("0 of 2")
    assert said.endswith("The winner no longer rose.")


def test_changes_without_a_commit_are_told() -> None:
    tags = {"corpus": "c", "mlflow.source.git.commit": "a" * 40, "git.dirty": "true"}
    assert sentences.what_was_measured(replace(STUDY, tags=tags)) == (
        "They are accuracies on 100 validation utterances of the corpus c, by the code of commit "
        "aaaaaaaaaaaa, with changes that are in no commit."
    )
    clean = sentences.what_was_measured(replace(STUDY, tags={**tags, "git.dirty": "false"}))
    assert clean.endswith("aaaaaaaaaaaa.")
    assert sentences.what_was_measured(STUDY).endswith("is not known.")


def test_remarks_say_why() -> None:
    row = ended(5, "collapsed", preset="four-edits", replicate="2", rescue_of="3")
    assert sentences.text_of(row) == "four-edits; seed 2; rescue of #3; collapsed; why 5"
    assert sentences.text_of(trial(0)) == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(1.44, "1.4 s"), (61, "61 s"), (300, "5 min"), (7200, "2.0 h")]
)
def test_times_are_told_as_a_person_says_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_lists_and_intervals_are_cut() -> None:
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed(["a", "b"], 2) == "a, b"
    assert between((-0.1, 1.2)) == "0.000 to 1.000"
    assert many(1, "trial") == "1 trial"
    assert many(1200, "trial") == "1,200 trials"
