import pytest
from scipy.stats import binomtest

from experiments.analysis.breakdown import by_length, by_speaker, whole
from experiments.analysis.gate import (
    BETTER,
    EQUAL,
    INCOMPARABLE,
    UNDECIDED,
    WORSE,
    Contender,
    judge,
)
from experiments.analysis.paired import compare_hits


def contender(name: str, hits: int, first: int = 0, **tags: str) -> Contender:
    """Return one that tells right `hits` of 20 utterances, from the `first` on."""
    right = "0" * first + "1" * hits + "0" * (20 - first - hits)
    told = {
        "corpus": "c",
        "corpus.digest": "d",
        "protocol.whole": "p",
        "valid.hits": f"{int('1' + right, 2):x}",
    }
    return Contender(name, {**told, **tags}, hits / 20, ("a", "b"))


@pytest.mark.parametrize(
    ("candidate", "champion", "kind"),
    [
        (contender("new", 18), contender("old", 10), BETTER),
        (contender("new", 10), contender("old", 18), WORSE),
        (contender("new", 10), contender("old", 10), EQUAL),
        (contender("new", 13), contender("old", 10), UNDECIDED),
        (contender("new", 10), contender("old", 10, first=10), UNDECIDED),
        (contender("new", 14), contender("old", 10), UNDECIDED),  # p = 0.125
        (contender("new", 15), contender("old", 10), BETTER),  # p = 0.0625
    ],
)
def test_only_what_is_better_beyond_luck_passes(
    candidate: Contender, champion: Contender, kind: str
) -> None:
    verdict = judge(candidate, champion)
    assert (verdict.kind, verdict.passes) == (kind, kind == BETTER)
    difference = candidate.accuracy - champion.accuracy
    assert (
        f"{candidate.accuracy:.4f} of new against {champion.accuracy:.4f} of old" in verdict.words
    )
    assert f"difference {difference:+.4f} (90 % interval " in verdict.words
    assert "\n" not in verdict.words


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"corpus.digest": "e", "corpus": "x"}, "different corpora (x, digest e and c, digest d)"),
        ({"protocol.whole": "q"}, "different protocols ('q' and 'p')"),
        ({"valid.hits": ""}, "the run of new keeps no record of which utterances"),
        ({"valid.hits": "1f"}, "different numbers of utterances"),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(changes: dict[str, str], reason: str) -> None:
    verdict = judge(contender("new", 20, 0, **changes), contender("old", 1))
    assert verdict.kind == INCOMPARABLE
    assert reason in verdict.words


def test_other_speakers_are_not_compared() -> None:
    new, old = contender("new", 20), contender("old", 1)
    verdict = judge(Contender("new", new.tags, 1.0, ("b", "c", "d")), old)
    assert verdict.kind == INCOMPARABLE
    assert "they know different speakers (3 and 2, 1 of them the same)" in verdict.words


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (1, 0), (4, 0), (5, 0), (9, 2), (2, 9), (7, 7)]
)
def test_the_interval_leaves_out_nought_where_the_test_is_sure(gained: int, lost: int) -> None:
    count = 40
    one = [True] * gained + [False] * lost + [True] * (count - gained - lost)
    other = [False] * gained + [True] * lost + [True] * (count - gained - lost)
    found = compare_hits(one, other)
    assert found is not None
    low, high = found.interval()
    assert found.difference == pytest.approx((gained - lost) / count)
    assert low <= found.difference <= high
    assert (low > 0 or high < 0) == (found.pvalue < 0.1)
    if gained + lost:
        assert found.pvalue == pytest.approx(binomtest(gained, gained + lost).pvalue)


def test_hits_by_length_and_by_speaker() -> None:
    hits = [True, False, True, True, False, True, True, True]
    frames = [80, 10, 70, 60, 20, 50, 40, 30]
    assert [(part.name, part.right, part.count) for part in by_length(hits, frames)] == [
        ("10 to 20", 0, 2), ("30 to 40", 2, 2), ("50 to 60", 2, 2), ("70 to 80", 2, 2),
    ]  # fmt: skip
    parts = by_speaker(hits, ["a", "b", "a", "c", "a", "c", "b", "c"])
    assert [(part.name, part.right, part.count) for part in parts] == [
        ("b", 1, 2), ("a", 2, 3), ("c", 3, 3),
    ]  # fmt: skip
    low, high = whole(hits).interval()
    assert low < whole(hits).accuracy == 0.75 < high
    assert len(by_length([True, False], [3, 4])) == 2
