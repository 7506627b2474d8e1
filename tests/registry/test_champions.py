import pytest

from experiments.registry.champions import (
    PROMOTED,
    RESTORED,
    Change,
    changes,
    earlier,
    is_whole,
    key_of,
)


def told(*steps: tuple[str, str, str]) -> dict[str, str]:
    """Return the tags of changes, (version, kind, before) each."""
    return {
        key_of("champion", number): str(Change(version, kind, "2026-11-28 04:00:00 UTC", before, "why: so"))
        for number, (version, kind, before) in enumerate(steps)
    }  # fmt: skip


FIRST, SECOND = ("1", PROMOTED, ""), ("2", PROMOTED, "1")
THIRD, BACK = ("3", PROMOTED, "2"), ("2", RESTORED, "3")


@pytest.mark.parametrize(
    ("steps", "current", "before"),
    [
        ([], "", []),
        ([FIRST], "1", []),
        ([FIRST, SECOND], "2", ["1"]),
        ([FIRST, SECOND], "1", []),  # killed before the alias moved
        ([FIRST, SECOND, THIRD], "3", ["2", "1"]),
        ([FIRST, SECOND, THIRD, BACK], "2", ["1"]),
        ([FIRST, SECOND, THIRD, BACK], "3", ["2", "1"]),  # killed before the alias moved
        ([FIRST, SECOND, ("1", PROMOTED, "2")], "1", ["2", "1"]),
        ([FIRST, SECOND, ("1", PROMOTED, "2"), ("2", RESTORED, "1")], "2", ["1"]),
        ([FIRST, SECOND, THIRD, ("1", RESTORED, "3")], "1", []),  # 2 could not be used
        ([("4", PROMOTED, "3")], "4", ["3"]),  # 3 is of an older program
        ([FIRST, SECOND], "7", ["2", "1"]),  # moved by hand
        ([FIRST, SECOND, ("9", PROMOTED, "7")], "9", ["7", "2", "1"]),  # moved by hand before
    ],
)
def test_a_demotion_goes_back_one_champion(
    steps: list[tuple[str, str, str]], current: str, before: list[str]
) -> None:
    assert earlier(changes(told(*steps), "champion", current), current) == before


def test_tags_are_read_as_they_were_written() -> None:
    change = Change("12", PROMOTED, "2026-11-28 04:00:00 UTC", "3", "0.5 over version 1: so")
    tags = {key_of("a", 0): str(change), "history.b.0000": "other", "x": "y", key_of("a", 1): "odd"}
    assert changes(tags, "a", "12") == [change]
    assert changes(tags, "b", "12") == []


def test_a_history_is_whole_from_the_first_champion_on() -> None:
    assert is_whole(changes(told(FIRST, SECOND), "champion", "2"))
    assert not is_whole(changes(told(THIRD), "champion", "3"))
    assert not is_whole([])
