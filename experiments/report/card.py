"""The card of a model, in Markdown: what it does, how well and for whom, where it comes from, and
what it must not be used for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run

from experiments.analysis import breakdown
from experiments.analysis.breakdown import Part
from experiments.analysis.leaderboard import read_hits
from experiments.tracking import names
from speaker.common.cli import printable
from speaker.config import TrialConfig
from speaker.data.pack import find_pack
from speaker.data.protocol import Protocol
from speaker.training.metrics import format_accuracy

MAX_CARD = 5_000  # letters: as many as MLflow's databases take as a description
WORST = 5  # speakers


@dataclass(frozen=True)
class Facts:
    """What a card says of a run; the parts are missing where hits, or for two of them the data, are
    lost.
    """

    run: Run
    speakers: int
    whole: Part | None = None
    lengths: Sequence[Part] = ()
    worst: Sequence[Part] = ()


def facts_of(run: Run, speakers: Sequence[str], packs: Path) -> Facts:
    """Look up what a card says of a run: by length and by speaker only if the pack that it was
    scored on is in the folder `packs`.
    """
    tags = run.data.tags
    hits = read_hits(tags.get(names.HITS, ""))
    if not hits:
        return Facts(run, len(speakers))
    whole = breakdown.whole(hits)
    pack = find_pack(packs, tags.get("corpus.digest", ""))
    if pack is None or tags.get("protocol.whole") != Protocol().describe()["whole"]:
        return Facts(run, len(speakers), whole)
    _, valid = Protocol().split(pack)
    if len(valid) != len(hits):
        return Facts(run, len(speakers), whole)
    lengths = breakdown.by_length(hits, pack.lengths[valid].tolist())
    labels = [pack.speakers[label] for label in pack.labels[valid].tolist()]
    return Facts(run, len(speakers), whole, lengths, breakdown.by_speaker(hits, labels))


def card(facts: Facts, confirmed: str, alias: str) -> str:
    """Return the card of a model that was `confirmed` so, and is called by `alias`."""
    tags = facts.run.data.tags
    lines = [
        f"# {tags[names.POINT]}, one of {facts.speakers:,} speakers",
        "",
        f"**Accuracy** {score(facts)}",
        "",
        f"- **Data**: corpus {_plain(tags.get('corpus', 'unknown'))}, {facts.speakers:,} speakers, "
        f"digest {tags.get('corpus.digest', 'unknown')[:12]}",
        f"- **Protocol**: {tags.get('protocol.whole', 'unknown')}; by crops: "
        f"{tags.get('protocol.crops', 'unknown')}",
        f"- **Confirmed**: {confirmed}",
        f"- **Origin**: {_origin(facts.run)}",
        f"- **Config**: {_config(facts.run)}",
        "- **Limits**: it names one of these speakers and nobody else, however strange the voice, "
        "and was scored on recordings like those that it learned from. Its best weights were "
        "chosen by the utterances that it is scored on, which flatters.",
        f"- **Use**: `python -m speaker predict --data CORPUS --model {alias}`, or without "
        "this project's code, on log-mel features:",
        "",
        "```python",
        f'model = mlflow.pyfunc.load_model("models:/{names.MODEL}@{alias}")',
        'model.predict({"mels": mels})  # a list of utterances, each (frames, n_mels)',
        "```",
        *_table("By length", "frames", facts.lengths),
        *_table("Told right least often", "speaker", facts.worst[:WORST]),
    ]
    if facts.whole and not facts.lengths:
        lines += ["", "By length and by speaker: unknown, the data are no longer at hand."]
    return "\n".join(lines)[:MAX_CARD]


def score(facts: Facts) -> str:
    """Return the accuracy with its interval, in words."""
    metrics = facts.run.data.metrics
    accuracy = format_accuracy(metrics[names.BEST_WHOLE])
    crops = f"by crops {format_accuracy(metrics[names.BEST_CROPS])}"
    if facts.whole is None:
        return f"{accuracy} on whole validation utterances; {crops}"
    count, interval = facts.whole.count, _interval(facts.whole)
    return f"{accuracy} on {count:,} whole validation utterances ({interval}); {crops}"


def _interval(part: Part) -> str:
    low, high = part.interval()
    return f"90 % interval {low:.3f} to {high:.3f}"


def _origin(run: Run) -> str:
    tags = run.data.tags
    trial = (
        f"trial #{tags[names.TRIAL]} of study {tags[names.STUDY]}, " if names.STUDY in tags else ""
    )
    code = ""
    if commit := tags.get("mlflow.source.git.commit"):
        changed = ", with changes in no commit" if tags.get("git.dirty") == "true" else ""
        code = f", commit {commit[:12]}{changed}"
    versions = "".join(
        f", {package} {tags[f'version.{package}']}"
        for package in ("torch", "python")
        if f"version.{package}" in tags
    )
    return f"{trial}run {run.info.run_id}{code}{versions}, {tags.get('device', 'device unknown')}"


def _config(run: Run) -> str:
    """Return the fields, seeds among them; those of the data are named by the protocol."""
    known = [name for name in TrialConfig().to_dict() if name in run.data.params]
    return ", ".join(f"{name} {run.data.params[name]}" for name in known)


def _table(title: str, what: str, parts: Sequence[Part]) -> list[str]:
    if not parts:
        return []
    rows = [
        f"| {_plain(part.name)} | {part.right:,} of {part.count:,} | {part.accuracy:.3f} | "
        f"{_interval(part).removeprefix('90 % interval ')} |"
        for part in parts
    ]
    head = f"| {what} | told right | accuracy | 90 % interval |"
    return ["", f"**{title}**", "", head, "| --- | --- | --- | --- |", *rows]


def _plain(text: str) -> str:
    """Return a stranger's name so that Markdown takes it as it is."""
    return f"`{printable(text)[:60].replace('`', '').replace('|', '/')}`"
