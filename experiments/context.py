"""What every trial of a search shares: the data on its device, how it is scored,
and where the numbers come from.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from speaker.common.cuda import release_memory, share_memory
from speaker.common.devices import Compute, find_compute, validate_jobs
from speaker.common.provenance import provenance
from speaker.config import TrialConfig
from speaker.data.check import check_manifests
from speaker.data.corpus import Corpus, read_corpus
from speaker.data.pack import Pack, open_pack
from speaker.data.protocol import Protocol
from speaker.sources.demo import build_demo
from speaker.training import lookahead
from speaker.training.checkpoint import Checkpoint, Copies, identity
from speaker.training.lookahead import Cost
from speaker.training.saved_state import Expected
from speaker.training.train import validate_batch_size

PACKAGES = ("torch", "optuna", "mlflow", "numpy", "sqlalchemy")  # whose versions a run keeps


@dataclass(frozen=True)
class TrainingContext:
    """What every trial of a search shares: the data, how it is scored, and where it comes from."""

    corpus: Corpus
    pack: Pack
    protocol: Protocol
    compute: Compute
    checkpoints: Path  # folder
    provenance: dict[str, str]

    def tags(self) -> dict[str, str]:
        """Return the tags of a run on this context."""
        protocols = {f"protocol.{name}": text for name, text in self.protocol.describe().items()}
        data = {
            "corpus": self.corpus.name,
            "corpus.digest": self.pack.digest,
            "precision": self.compute.precision_name,
        }
        return {**data, **protocols, **self.provenance}

    def incidental_tags(self) -> set[str]:
        """Return the names of those tags that may change while a run is resumed."""
        return {"corpus", *self.provenance}

    def decisive_tags(self) -> dict[str, str]:
        """Return the tags of which two runs must have the same, to be compared."""
        incidental = self.incidental_tags()
        return {key: value for key, value in self.tags().items() if key not in incidental}

    def utterances(self) -> int:
        """Return how many utterances there are to train on."""
        rows, _ = self.protocol.split(self.pack)
        return len(rows)

    def counts(self) -> tuple[int, int]:
        """Return how many validation utterances and how many speakers there are."""
        _, rows = self.protocol.split(self.pack)
        return len(rows), len(self.pack.speakers)

    def fit_batch(self, config: TrialConfig, batch_size: int | None = None) -> TrialConfig:
        """Return a point with the batch size that was asked for,
        or with one that a small corpus has enough for.

        Raises UserError for a batch that needs more training utterances than there are.
        """
        rows = self.utterances()
        if batch_size is None and rows < config.batch_size:
            print(
                f"A step has {rows} utterances instead of {config.batch_size}: the corpus has "
                "no more to train on."
            )
            batch_size = rows
        config = config.replace(batch_size=batch_size) if batch_size else config
        validate_batch_size(config, self.pack, self.protocol)
        return config

    def checkpoint(
        self,
        run_id: str,
        config: TrialConfig,
        say: Callable[[str], None] = tqdm.write,
        copies: Copies | None = None,
    ) -> Checkpoint:
        """Return where a run's training keeps what it needs to resume after a kill, with copies for
        other machines; `say` hears when that cannot be written.
        """
        which = identity(config, self.pack, self.protocol, self.compute.precision)
        expected = Expected(config, self.pack, self.protocol, self.compute.precision)
        path = self.checkpoints / f"{run_id}.checkpoint"
        return Checkpoint(path, which, expected=expected, say=say, copies=copies)


def load_context(
    data: Path | None, device_name: str, precision_name: str, state: Path, jobs: int = 1
) -> TrainingContext:
    """Read a corpus, or make the demo corpus in the folder `state`, and open its pack,
    on the CPU for the time being.

    It will be computed on by `jobs` processes. Raises UserError for a corpus or a device that
    cannot be used.
    """
    compute = find_compute(device_name, precision_name, jobs)
    folder = data or state / "demo"
    if data is None and not folder.exists():
        print(f"No --data given: making a demo corpus of invented speakers in {folder}.")
        build_demo(folder)
    corpus = read_corpus(folder)
    warnings = check_manifests(corpus)
    if warnings.counts:
        print("\n".join(warnings.lines("warnings")))
    pack = open_pack(corpus, state / "packs")
    return TrainingContext(
        corpus, pack, Protocol(), compute, state / "checkpoints", provenance(compute, PACKAGES)
    )


def with_threads(context: TrainingContext, threads: int) -> TrainingContext:
    """Return a context on a CPU, to compute with as many threads as were used once."""
    compute = replace(context.compute, threads=threads)
    return replace(context, compute=compute, provenance=provenance(compute, PACKAGES))


def move_to_device(
    context: TrainingContext, points: Sequence[TrialConfig], jobs: int = 1
) -> tuple[TrainingContext, list[Cost]]:
    """Put the pack on the device and look ahead: do a few steps of some points,
    and take what works from then on.

    Prints what does not. Returns the context to compute with in each of `jobs` processes, and what
    the points cost. Raises UserError when the device cannot compute, or has too little memory.
    """
    compute, pack, costs = lookahead.find_working_compute(
        points,
        lambda tried: context.pack.to(tried.device, tried.precision),
        context.protocol,
        context.compute,
    )
    for fallback in compute.fallbacks:
        print(f"warning: {fallback}", file=sys.stderr)
    validate_jobs(compute.device, jobs)
    if compute.device.type == "cuda" and jobs > 1:
        release_memory()
        compute = replace(compute, memory_fraction=share_memory(compute.device, jobs))
    return replace(
        context, pack=pack, compute=compute, provenance=provenance(compute, PACKAGES)
    ), costs
