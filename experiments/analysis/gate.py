"""Whether a run's model may take the place of the champion: only if it is better beyond noise."""

from dataclasses import dataclass

from experiments.analysis.leaderboard import SURE, read_hits
from experiments.analysis.paired import Paired, compare_hits
from experiments.tracking import names
from speaker.training.metrics import format_accuracy


@dataclass(frozen=True)
class Contender:
    """A candidate or a champion: what it is called, what its run and version say, whom it knows."""

    name: str
    tags: dict[str, str]
    accuracy: float
    speakers: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a candidate, with both scores and what they mean, in one line."""

    kind: str  # one of those below
    words: str

    @property
    def passes(self) -> bool:
        """Whether the candidate may take the champion's place."""
        return self.kind == BETTER


BETTER, EQUAL, UNDECIDED, WORSE, INCOMPARABLE = (
    "better beyond luck", "equal", "no more than luck explains", "worse", "not comparable",
)  # fmt: skip


def judge(candidate: Contender, champion: Contender) -> Verdict:
    """Compare a candidate with the champion on the validation utterances that both were scored
    on.
    """
    scores = f"{_score(candidate)} against {_score(champion)}"
    obstacle = _obstacle(candidate, champion)
    found = compare_hits(_hits(candidate), _hits(champion))
    if obstacle or found is None:
        return Verdict(INCOMPARABLE, f"{scores}, and they cannot be compared: {obstacle}")
    if not found.gained + found.lost:
        kind = EQUAL
    elif found.pvalue > SURE:
        kind = UNDECIDED
    else:
        kind = BETTER if found.difference > 0 else WORSE
    return Verdict(kind, f"{scores}: {kind}, {_describe(found)}")


def _obstacle(candidate: Contender, champion: Contender) -> str:
    """Return why two models' hits are not of the same task; nothing if they are."""
    if set(candidate.speakers) != set(champion.speakers):
        shared = len({*candidate.speakers} & {*champion.speakers})
        return (
            f"they know different speakers ({len(candidate.speakers):,} and "
            f"{len(champion.speakers):,}, {shared:,} of them the same)"
        )
    if _differ("corpus.digest", candidate, champion):
        return (
            f"they were scored on different corpora ({_corpus(candidate)} and {_corpus(champion)})"
        )
    if _differ("protocol.whole", candidate, champion):
        return (
            f"they were scored by different protocols "
            f"({candidate.tags.get('protocol.whole', 'unknown')!r} and "
            f"{champion.tags.get('protocol.whole', 'unknown')!r})"
        )
    for each in (candidate, champion):
        if not _hits(each):
            return f"the run of {each.name} keeps no record of which utterances it told right"
    if len(_hits(candidate)) != len(_hits(champion)):
        return "they were scored on different numbers of utterances"
    return ""


def _differ(tag: str, candidate: Contender, champion: Contender) -> bool:
    return candidate.tags.get(tag, "") != champion.tags.get(tag, "") or tag not in candidate.tags


def _corpus(contender: Contender) -> str:
    tags = contender.tags
    return f"{tags.get('corpus', 'unknown')}, digest {tags.get('corpus.digest', 'unknown')[:8]}"


def _hits(contender: Contender) -> tuple[bool, ...]:
    return read_hits(contender.tags.get(names.HITS, ""))


def _score(contender: Contender) -> str:
    return f"{format_accuracy(contender.accuracy)} of {contender.name}"


def _describe(found: Paired) -> str:
    low, high = found.interval()
    return (
        f"difference {found.difference:+.4f} (90 % interval {low:+.4f} to {high:+.4f}; McNemar's "
        f"test on {found.count:,} utterances, p = {found.pvalue:.2g})"
    )
