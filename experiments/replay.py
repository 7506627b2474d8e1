"""Train a run again from its record alone, and certify what came of it:
`python -m experiments replay RUN`.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.entities import Run
from tqdm import tqdm

from experiments.analysis.intervals import measured_bounds
from experiments.analysis.leaderboard import logged_values
from experiments.context import TrainingContext, load_context, move_to_device, with_threads
from experiments.registry.versions import find_run
from experiments.tracking import names
from experiments.tracking.artifacts import CONFIG, read_text
from experiments.tracking.store import TrackingStore
from speaker.common.devices import find_compute
from speaker.common.errors import UserError, describe_differences, first_line
from speaker.config import TrialConfig
from speaker.model.saved_model import save_model
from speaker.training.metrics import OBJECTIVE, Metrics, format_accuracy
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult, train

ENDED = (Outcome.COMPLETE, Outcome.PRUNED, Outcome.COLLAPSED)  # with a result to get again
# What a result may hang on besides the versions; a device says its precision and threads.
CONDITIONS = ("device", "mlflow.source.git.commit", "git.dirty")


class Verdict(StrEnum):
    """What a replay says of a run."""

    EQUAL = "equal weights"
    CLOSE = "equal metrics"  # within a bound, where something differs that may explain the weights
    DIFFERENT = "different"


@dataclass(frozen=True)
class Record:
    """What a run says of itself, as far as it can be trained again from that."""

    run_id: str
    config: TrialConfig
    tags: dict[str, str]
    whole: float
    last: int  # step of the last evaluation
    corpus: Path  # where it lay


@dataclass(frozen=True)
class Certificate:
    """What came of a replay."""

    verdict: Verdict
    words: str
    differs: str  # what is not as it was; nothing where all is

    def describe(self) -> str:
        """Return it in words."""
        known = f"Not as it was: {self.differs}." if self.differs else ""
        known = known or "Versions, device, threads and commit are as they were."
        return f"{self.verdict.capitalize()}: {self.words}.\n{known}"

    def tags(self, when: str) -> dict[str, str]:
        """Return it as a run's tags."""
        return {
            names.REPLAY: self.verdict,
            names.REPLAY_WORDS: f"{when}: {self.words}",
            names.REPLAY_DIFFERS: self.differs or "nothing",
        }


def read_record(store: TrackingStore, run_id: str) -> Record:
    """Return a run's record. Raises UserError for a run that cannot be trained again."""
    run = find_run(store, run_id)
    if run is None or run.info.lifecycle_stage != "active":
        raise UserError(f"there is no run {run_id!r} in {store.shown}; copy its id from the UI")
    tags = run.data.tags
    state = tags.get(names.STATE, "without an end")
    if tags.get(names.KIND) != names.KIND_TRIAL or state not in ENDED:
        what = "a study" if tags.get(names.KIND) == names.KIND_STUDY else state
        raise UserError(
            f"only a trial that is {', '.join(ENDED[:-1])} or {ENDED[-1]} can be replayed, but run "
            f"{run_id} is {what}; choose another"
        )
    needed = (names.SHA256, names.FINGERPRINT, "device", "precision", "corpus.digest")
    if missing := [name for name in needed if name not in tags]:
        raise UserError(
            f"only a run that kept its model can be replayed, but run {run_id} lacks "
            f"{', '.join(missing)}; choose another"
        )
    last = max(row.step for row in store.client.get_metric_history(run_id, OBJECTIVE))
    config = TrialConfig.from_dict(logged_values(run.data.params))
    whole = run.data.metrics[names.BEST_WHOLE]
    return Record(run_id, config, dict(tags), whole, last, _corpus_of(run))


def contradiction(store: TrackingStore, record: Record) -> str:
    """Return in words how a record contradicts itself: its params, the hash of its config and the
    file of it must be of one point; nothing where they are.
    """
    if (there := record.tags[names.FINGERPRINT]) != (here := record.config.fingerprint()):
        return f"{names.FINGERPRINT} is {there}, but that of its params is {here}"
    text = read_text(store, store.client.get_run(record.run_id), CONFIG)
    if not text:  # it is lost, and the params say the same
        return ""
    try:
        config = TrialConfig.from_dict(json.loads(text))
    except (ValueError, UserError) as error:
        return f"config.json holds no config: {first_line(error)}"
    changes = describe_differences(config.to_dict(), record.config.to_dict())
    return f"config.json is not of its params: {changes}" if changes else ""


def context_of(record: Record, data: Path | None, state: Path) -> TrainingContext:
    """Return what a run was trained on and with, as far as that is here.

    Raises UserError for another corpus or protocol.
    """
    folder = data or record.corpus
    if not folder.is_dir():
        raise UserError(
            f"a replay needs the corpus of its run, but {folder} is no folder; say with --data "
            "where it lies now"
        )
    context = load_context(folder, *_device_of(record), state)
    if threads := re.search(r", (\d+) threads?$", record.tags["device"]):
        context = with_threads(context, int(threads[1]))
    validate(record, context)
    return move_to_device(context, [record.config])[0]


def validate(record: Record, context: TrainingContext) -> None:
    """Raise UserError where a run was trained on another corpus, or measured otherwise."""
    here = {name: value for name, value in context.decisive_tags().items() if name != "precision"}
    there = {name: record.tags.get(name, "unknown") for name in here}
    if changes := describe_differences(there, here):
        raise UserError(
            f"a replay needs the corpus and the protocol of its run, but {changes}; say with "
            "--data where that corpus lies"
        )


def replay(record: Record, context: TrainingContext) -> Certificate:
    """Train a run again, to where it ended, and compare what came of it.

    One that was stopped by its search is stopped at the same step. The replay of a run that is
    stopped itself resumes, like any other training.
    """
    is_pruned = record.tags[names.STATE] == Outcome.PRUNED

    def report(step: int, _metrics: Metrics) -> bool:
        return is_pruned and step >= record.last

    config, pack, protocol = record.config, context.pack, context.protocol
    checkpoint = context.checkpoint(f"replay-{record.run_id}", config)
    with tqdm(total=config.steps, desc=config.label(), unit="step", disable=None) as bar:
        result = train(config, pack, protocol, report, context.compute, checkpoint, bar)
    certificate = certify(record, context, result)
    checkpoint.remove()
    return certificate


def certify(record: Record, context: TrainingContext, result: TrialResult) -> Certificate:
    """Compare a training with the run that it repeats."""
    differs = describe_differences(_conditions(record.tags), _conditions(context.tags()))
    ended = f"after {result.steps:,} steps"
    if result.outcome != record.tags[names.STATE] or not result.weights:
        words = f"it ended as {result.outcome} {ended}, not as {record.tags[names.STATE]}"
        return Certificate(Verdict.DIFFERENT, words, differs)
    if (sha256 := _sha256(record, context, result)) == record.tags[names.SHA256]:
        return Certificate(Verdict.EQUAL, f"{ended} the weights have sha256 {sha256}", differs)
    whole, _ = result.scores()
    low, high = measured_bounds(record.whole, context.counts()[0]) or (0.0, 1.0)
    words = (
        f"{ended} the weights differ; accuracy {format_accuracy(whole)}, recorded "
        f"{record.whole:.4f}, whose 90 % interval is {low:.4f} to {high:.4f}"
    )
    is_close = differs and whole is not None and low <= whole <= high
    return Certificate(Verdict.CLOSE if is_close else Verdict.DIFFERENT, words, differs)


def _sha256(record: Record, context: TrainingContext, result: TrialResult) -> str:
    """Return the hash that a run would have had, by what writes it there."""
    pack = context.pack
    with tempfile.TemporaryDirectory() as folder:
        return save_model(
            Path(folder), result.weights, record.config, pack.n_mels, pack.speakers, pack.digest
        )


def _device_of(record: Record) -> tuple[str, str]:
    """Return the names of a run's device and precision, or of what there is instead."""
    device, precision = re.split("[, ]", record.tags["device"])[0], record.tags["precision"]
    for asked in ((device, precision), (device, "auto")):
        with contextlib.suppress(UserError):
            find_compute(*asked)
            return asked
    return "auto", "auto"


def _conditions(tags: Mapping[str, str]) -> dict[str, str]:
    """Return those of a run's tags that its result may hang on."""
    kept = sorted(name for name in tags if name in CONDITIONS or name.startswith("version."))
    return {name: tags[name] for name in kept}


def _corpus_of(run: Run) -> Path:
    """Return where the corpus lay that a run was trained on; nowhere if it does not say."""
    for each in run.inputs.dataset_inputs:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return Path(url2pathname(urlsplit(json.loads(each.dataset.source)["uri"]).path))
    return Path("none")
