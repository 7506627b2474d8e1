"""Which versions were champion, one after another: kept as tags of the registered model, one a
change, each written before the alias moves.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROMOTED, RESTORED = "promoted", "restored"
_TEXT = re.compile(
    rf"version (\d+) ({PROMOTED}|{RESTORED}) on (.+? UTC)(?: over version (\d+))?: (.*)"
)


@dataclass(frozen=True)
class Change:
    """An alias was given to a version: a new one, or by a demotion the one before."""

    version: str
    kind: str  # PROMOTED or RESTORED
    when: str  # date and time, UTC
    before: str  # the version that had the alias; nothing where none had
    why: str  # one line

    def __str__(self) -> str:
        over = f" over version {self.before}" if self.before else ""
        return f"version {self.version} {self.kind} on {self.when}{over}: {self.why}"


def changes(tags: Mapping[str, str], alias: str, current: str) -> list[Change]:
    """Return the changes of an alias that took effect, oldest first, where it has the version
    `current` now. The last one is left out if a kill came before the alias moved.
    """
    kept = []
    for key in sorted(key for key in tags if key.startswith(f"history.{alias}.")):
        if found := _TEXT.fullmatch(tags[key]):
            version, kind, when, before, why = found.groups()
            kept.append(Change(version, kind, when, before or "", why))
    if kept and kept[-1].version != current and kept[-1].before == current:
        kept.pop()
    return kept


def key_of(alias: str, number: int) -> str:
    """Return the tag of an alias's change by its number, from 0."""
    return f"history.{alias}.{number:04}"


def earlier(kept: Sequence[Change], current: str) -> list[str]:
    """Return the versions that a demotion may go back to, the nearest first. What was demoted is
    not among them, however often.
    """
    stack: list[str] = []
    for change in kept:
        if change.before and (not stack or stack[-1] != change.before):
            stack.append(change.before)
        if change.kind == RESTORED:
            while stack and stack[-1] != change.version:
                stack.pop()
        if not stack or stack[-1] != change.version:
            stack.append(change.version)
    if stack and stack[-1] == current:
        stack.pop()
    return stack[::-1]


def is_whole(kept: Sequence[Change]) -> bool:
    """Tell whether changes begin with the first champion; older programs kept no history."""
    return bool(kept) and kept[0].kind == PROMOTED and not kept[0].before
