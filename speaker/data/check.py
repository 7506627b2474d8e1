"""Everything that could be wrong with a corpus, found before training;
and what the corpus looks like.
"""

import hashlib
import math
import shlex
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from speaker.common.cli import printable
from speaker.common.errors import UserError
from speaker.common.files import HEAD
from speaker.data.corpus import (
    MANIFESTS,
    TEST_LABELS,
    Corpus,
    Utterance,
    UtteranceError,
    is_legacy,
    read_manifests,
    read_mels,
)
from speaker.data.features import FLOOR, HOP, SAMPLE_RATE
from speaker.data.labels import read_labels

FIRST = 5  # cases of a kind that are kept
SEGMENT = 128  # frames: the homework's crop
PICTURES = (".png", ".svg", ".pdf")
SPARE_BYTES = 65_536  # of a feature file that are not its values
BARS = "▁▂▃▄▅▆▇█"
KNOWN_EXTRAS = {*MANIFESTS, TEST_LABELS, "log_melspectrogram.pt", "sox_effects.pt", "._Dataset"}
AT_FLOOR = math.log(FLOOR) + 1e-3


@dataclass
class Findings:
    """How often each kind of problem was found, and its first cases."""

    counts: Counter[str] = field(default_factory=Counter)
    cases: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, case: str) -> None:
        """Count one more case."""
        self.counts[kind] += 1
        if len(self.cases[kind]) < FIRST:
            self.cases[kind].append(case)

    def lines(self, title: str) -> list[str]:
        """Return a line for each kind, the most frequent first,
        and one for each case that was kept.
        """
        lines = [f"{title:<11} {'none' if not self.counts else f'{self.counts.total():,}'}"]
        for kind, count in self.counts.most_common():
            lines += [f"  {count:,} x {kind}", *(f"      {case}" for case in self.cases[kind])]
            if count > FIRST:
                lines.append(f"      and {count - FIRST:,} more")
        return lines


@dataclass
class Report:
    """What a check found. Statistics are of the utterances that could be read."""

    corpus: Corpus
    errors: Findings = field(default_factory=Findings)
    warnings: Findings = field(default_factory=Findings)
    lengths: list[int] = field(default_factory=list)  # labelled and test
    floor_shares: list[float] = field(default_factory=list)  # of each utterance's values
    # Of values and squares.
    band_sums: Tensor = field(default_factory=lambda: torch.zeros(2, 1, dtype=torch.float64))
    bytes: int = 0  # of all feature files
    seconds: float = 0.0  # that reading them took

    def bands(self) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of each mel band, (n_mels,) each."""
        mean, square = self.band_sums / max(1, sum(self.lengths))
        return mean, (square - mean.square()).clamp(min=0).sqrt()

    def per_speaker(self) -> list[int]:
        """Return the speakers' numbers of labelled utterances, by id."""
        counts = Counter(utterance.speaker for utterance in self.corpus.utterances)
        return [counts[number] for number in range(len(self.corpus.speakers))]


def check(folder: Path) -> Report:
    """Read every manifest entry and feature file of a corpus, and say all that is wrong with it.

    Raises UserError where a manifest as a whole is wrong.
    """
    corpus, faults = read_manifests(folder)
    report = Report(corpus)
    for fault in faults:
        report.errors.add(fault.kind, str(fault))
    _check_labels(report)
    began = time.perf_counter()
    _check_features(report)
    report.seconds = time.perf_counter() - began
    return report


def check_manifests(corpus: Corpus) -> Findings:
    """Return what the manifests alone say against an accuracy on this corpus. No file is read.

    Raises UserError where feature files are missing.
    """
    utterances = (*corpus.utterances, *corpus.test)
    if missing := [
        each.feature_path
        for each in utterances
        if not (corpus.folder / each.feature_path).is_file()
    ]:
        raise UserError(
            f"{corpus.folder}: every file in the manifests must be there, but {len(missing):,} of "
            f"{len(utterances):,} are missing, the first is {missing[0]}; run python -m speaker "
            f"check {shlex.quote(str(corpus.folder))}"
        )
    return label_warnings(corpus)


def label_warnings(corpus: Corpus) -> Findings:
    """Return what the labels say against an accuracy on this corpus."""
    findings = Findings()
    counts = Counter(utterance.speaker for utterance in corpus.utterances)
    for number, name in enumerate(corpus.speakers):
        if counts[number] < 2:
            findings.add(
                "speaker with fewer than two utterances, who cannot be both learnt and measured",
                name,
            )
    labelled = {utterance.feature_path for utterance in corpus.utterances}
    for utterance in corpus.test:
        if utterance.feature_path in labelled:
            findings.add("test utterance that is also a training utterance", utterance.feature_path)
    for before, name in _lookalikes(corpus.speakers):
        findings.add("two speakers whose names look the same", f"{before!a} and {name!a}")
    return findings


def describe(report: Report) -> str:
    """Return a report in words."""
    corpus, lengths = report.corpus, torch.tensor(report.lengths or [0], dtype=torch.float64)
    points = torch.tensor([0, 0.05, 0.5, 0.95, 1], dtype=torch.float64)
    low, five, median, most, high = lengths.quantile(points).tolist()
    each = sorted(report.per_speaker())
    labelled = sum(utterance.frames for utterance in corpus.utterances)
    packing = report.seconds * len(corpus.utterances) / max(1, len(report.lengths))
    floor = sum(
        share * length for share, length in zip(report.floor_shares, report.lengths, strict=True)
    )
    hours = sum(report.lengths) * HOP / SAMPLE_RATE / 3_600
    lines = [
        f"corpus      {corpus.folder}: {len(corpus.speakers):,} speakers, "
        f"{len(corpus.utterances):,} labelled and "
        f"{len(corpus.test):,} test utterances, {corpus.n_mels} mels",
        f"speakers    {each[0]:,} to {each[-1]:,} labelled utterances each, "
        f"median {each[len(each) // 2]:,}",
        f"lengths     {low:,.0f} to {high:,.0f} frames, median {median:,.0f}, mean "
        f"{lengths.mean():,.0f}, 5 % below {five:,.0f}, 5 % above {most:,.0f}; "
        f"{int((lengths < SEGMENT).sum()):,} are shorter than {SEGMENT}",
        f"            {_bars(report.lengths)}",
        f"frames      {sum(report.lengths):,}, {hours:,.2f} hours",
        f"floor       {100 * floor / max(1, sum(report.lengths)):.2f} % of the values lie at "
        f"{math.log(FLOOR):.4f}",
        f"size        {report.bytes / 1e6:,.1f} MB; packed "
        f"{2 * labelled * corpus.n_mels / 1e6:,.1f} MB, in about "
        f"{packing:,.0f} s",
    ]
    lines += [*report.errors.lines("errors"), *report.warnings.lines("warnings")]
    return "\n".join(map(printable, lines))  # names of files may have line breaks


def draw(report: Report, path: Path) -> None:
    """Draw what a corpus looks like into a picture, whose format the name's ending decides:
    one of PICTURES.
    """
    from matplotlib.figure import Figure  # late: only this needs it, and it takes a while

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 2)
    axes[0, 0].hist(report.lengths, bins=_edges(report.lengths))
    axes[0, 0].set(xlabel="frames", ylabel="utterances")
    axes[0, 1].plot(sorted(report.per_speaker(), reverse=True))
    axes[0, 1].set(xlabel="speakers, most first", ylabel="labelled utterances")
    axes[0, 1].set_ylim(bottom=0)
    mean, deviation = report.bands()
    bands = range(len(mean))
    axes[1, 0].plot(bands, mean)
    axes[1, 0].fill_between(bands, mean - deviation, mean + deviation, alpha=0.3)
    axes[1, 0].set(xlabel="mel band", ylabel="log-mel, mean and deviation")
    axes[1, 1].hist(report.floor_shares, bins=40, range=(0, 1))
    axes[1, 1].set(xlabel="share of values at the floor", ylabel="utterances")
    figure.suptitle(
        f"{report.corpus.name}: {len(report.corpus.speakers)} speakers, {len(report.lengths):,} "
        "utterances"
    )
    figure.savefig(path, dpi=120)


def _check_labels(report: Report) -> None:
    corpus = report.corpus
    report.warnings = label_warnings(corpus)
    try:
        read_labels(corpus)
    except UserError as error:
        report.errors.add(f"{TEST_LABELS} that does not belong to testdata.json", str(error))
    listed = {
        utterance.feature_path for utterance in (*corpus.utterances, *corpus.test)
    } | KNOWN_EXTRAS
    for name in sorted(path.name for path in corpus.folder.iterdir() if path.name not in listed):
        report.warnings.add("file that no manifest lists", name)


def _check_features(report: Report) -> None:
    """Read every feature file; test utterances last,
    so that each is compared with all labelled ones.
    """
    corpus = report.corpus
    seen: dict[bytes, Utterance] = {}
    report.band_sums = torch.zeros(2, corpus.n_mels, dtype=torch.float64)
    utterances = (*corpus.utterances, *corpus.test)
    for utterance in tqdm(utterances, desc="checking", unit="utterance", disable=None):
        try:
            mels = read_mels(corpus, utterance)
        except UtteranceError as fault:
            report.errors.add(fault.kind, str(fault))
            continue
        report.lengths.append(utterance.frames)
        report.bytes += _check_format(report, utterance, mels)
        report.floor_shares.append(float((mels < AT_FLOOR).double().mean()))
        wide = mels.double()
        report.band_sums += torch.stack((wide.sum(0), wide.square().sum(0)))
        if report.floor_shares[-1] == 1:
            report.warnings.add("utterance of nothing but silence", utterance.feature_path)
        elif len(mels) > 1 and bool((mels == mels[0]).all()):
            report.warnings.add("utterance whose frames are all alike", utterance.feature_path)
        before = seen.setdefault(
            hashlib.blake2b(mels.numpy().data, digest_size=16).digest(), utterance
        )
        if before is not utterance:
            _add_repetition(report, before, utterance)


def _check_format(report: Report, utterance: Utterance, mels: Tensor) -> int:
    """Return the size of a feature file, and warn of one that is read but not as it should be."""
    path = report.corpus.folder / utterance.feature_path
    size = path.stat().st_size
    if size > SPARE_BYTES + 2 * mels.nbytes:
        kind = "feature file that holds more than its utterance; save the tensor's clone()"
        report.warnings.add(kind, f"{utterance.feature_path} has {size:,} bytes")
    with path.open("rb") as stream:
        if is_legacy(stream.read(HEAD)):
            kind = "feature file without checksums, of PyTorch before 1.6; save it again"
            report.warnings.add(kind, utterance.feature_path)
    return size


def _lookalikes(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield names that differ from an earlier one only in Unicode form, case or outer spaces."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFKC", name).casefold().strip()
        if (before := seen.setdefault(key, name)) != name:
            yield before, name


def _add_repetition(report: Report, before: Utterance, utterance: Utterance) -> None:
    names = report.corpus.speakers
    if utterance.speaker is None or before.speaker is None:
        kind = (
            "test utterance twice"
            if before.speaker is None
            else "test utterance that is also a training utterance"
        )
        if utterance.feature_path != before.feature_path:
            report.warnings.add(kind, f"{utterance.feature_path} equals {before.feature_path}")
    elif utterance.speaker == before.speaker:
        case = f"{utterance.feature_path} equals {before.feature_path}"
        report.warnings.add("the same features twice under one speaker", case)
    else:
        here, there = names[utterance.speaker], names[before.speaker]
        case = f"{utterance.feature_path} of {here} equals {before.feature_path} of {there}"
        report.errors.add("the same features under two speakers", case)


def _edges(lengths: list[int]) -> list[int]:
    """Return the edges of some forty bins of lengths: whole numbers,
    so that each holds as many lengths.
    """
    low, high = min(lengths, default=0), max(lengths, default=0)
    return list(range(low, high + 1 + (width := 1 + (high - low) // 40), width))


def _bars(lengths: list[int]) -> str:
    """Return a histogram of lengths in one line of text."""
    edges = _edges(lengths)
    counts = Counter((length - edges[0]) // (edges[1] - edges[0]) for length in lengths)
    most = max(counts.values(), default=1)
    return "".join(BARS[math.ceil(7 * counts[number] / most)] for number in range(len(edges) - 1))
