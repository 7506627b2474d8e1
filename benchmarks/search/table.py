"""Train points of the homework's space and keep their learning curves: what searches are judged by.

`python -m benchmarks.search.table --corpus demo --points 250 --out FILE` trains a random sample of
the space's 600 points, the first `--repeated` of them on three seeds, and adds a line of JSON for
each to a gzip file. A line holds the accuracy on the validation part at every tenth of the
budget; the best weights' hits on it, a bit an utterance; and their accuracy on utterances that no
search sees: for the demo 400 more of its speakers, for a corpus a quarter of it, which is left out
of the search. Run again, it adds what is missing.
"""

import argparse
import contextlib
import gzip
import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.study.space import HOMEWORK
from speaker.common.devices import Compute, find_precision
from speaker.common.files import create_once
from speaker.common.paths import STATE
from speaker.common.provenance import provenance
from speaker.common.seeding import permutation
from speaker.config import DEMO_BUDGET, HOMEWORK_BASELINE, TrialConfig
from speaker.data.corpus import Corpus, read_corpus, write_manifests
from speaker.data.features import N_MELS, log_mel
from speaker.data.pack import Pack, open_pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import SpeakerClassifier
from speaker.sources.demo import (
    SPEAKERS,
    TEST_PER_SPEAKER,
    TRAIN_PER_SPEAKER,
    build_demo,
    draw_voice,
    synthesize,
)
from speaker.training.metrics import LOSS_WHOLE, OBJECTIVE, hex_of
from speaker.training.train import train

RUNGS = 10  # evaluations of a trial
SEEDS = 3  # of the points that are repeated
UNSEEN_PER_SPEAKER = 20  # utterances of the demo's speakers
UNSEEN_FRACTION = 0.25  # of another corpus
CORPUS_BUDGET = HOMEWORK_BASELINE.with_steps(200).replace(segment_len=64)
PROTOCOL = Protocol()


@dataclass(frozen=True)
class Task:
    """One training."""

    config: TrialConfig
    data: Path
    unseen: Path
    state: Path
    precision: str


def identity(config: TrialConfig) -> tuple[Any, ...]:
    """Return what tells a training from the others of a table."""
    return (*(getattr(config, name) for name in HOMEWORK.definition()), config.seed)


def points(base: TrialConfig, count: int) -> list[TrialConfig]:
    """Return a random sample of the homework's space, the same every time."""
    every = HOMEWORK.points(base)
    return [every[index] for index in permutation(len(every), 0, "table").tolist()[:count]]


def run(task: Task) -> dict[str, Any]:
    """Train one point, and return its line."""
    torch.set_num_threads(1)
    pack = open_pack(read_corpus(task.data), task.state / "packs")
    unseen = open_pack(read_corpus(task.unseen), task.state / "packs")
    rows: list[tuple[int, float, float]] = []

    def report(step: int, metrics: dict[str, float]) -> bool:
        rows.append((step, round(metrics[OBJECTIVE], 5), round(metrics[LOSS_WHOLE], 4)))
        return False

    compute = Compute(precision=find_precision(task.precision, torch.device("cpu")))
    begun = time.process_time()  # of one thread: other work on the machine does not count
    result = train(task.config, pack, PROTOCOL, report, compute)
    line: dict[str, Any] = {
        "point": {name: getattr(task.config, name) for name in HOMEWORK.definition()},
        "seed": task.config.seed,
        "precision": compute.precision_name,
        "outcome": str(result.outcome),
        "rows": rows,
        "seconds": round(time.process_time() - begun, 2),
    }
    if result.best:
        model = SpeakerClassifier(task.config, pack.n_mels, len(pack.speakers)).eval()
        model.load_state_dict(result.weights)
        _, valid = PROTOCOL.split(pack)
        line["hits"] = hex_of(hits(model, pack, valid))
        line["unseen"] = hits(model, unseen, torch.arange(len(unseen))).float().mean().item()
    return line


@torch.inference_mode()
def hits(model: SpeakerClassifier, pack: Pack, rows: torch.Tensor) -> torch.Tensor:
    """Return whether each of some utterances is told right, bool (len(rows),)."""
    answers = []
    for part in rows.split(8):
        mels, lengths = pack.gather(part, 0, int(pack.lengths[part].max()))
        answers.append(model(mels, lengths).argmax(1) == pack.labels[part])
    return torch.cat(answers)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table; one cut off by a kill is left out."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        with gzip.open(path, "rt") as stream, contextlib.suppress(EOFError, ValueError):
            lines.extend(json.loads(line) for line in stream)
    return lines


def write_unseen(folder: Path) -> None:
    """Write further utterances of the demo's speakers, none of which is in the demo."""
    folder.mkdir()
    labelled: dict[str, list[tuple[str, int]]] = {}
    first = TRAIN_PER_SPEAKER + TEST_PER_SPEAKER
    for number in range(SPEAKERS):
        name = f"id{1 + 7 * number:05d}"
        voice = draw_voice(f"0/voice/{name}")
        labelled[name] = []
        for index in range(first, first + UNSEEN_PER_SPEAKER):
            mels = log_mel(synthesize(voice, f"0/utterance/{name}/{index}"))
            labelled[name].append((f"uttr-{name}-{index}.pt", len(mels)))
            torch.save(mels, folder / labelled[name][-1][0])
    write_manifests(folder, N_MELS, labelled, [])


def write_part(corpus: Corpus, rows: list[int], folder: Path) -> None:
    """Write a corpus of some of another's utterances, its speakers under the same ids."""
    folder.mkdir()
    labelled: dict[str, list[tuple[str, int]]] = {name: [] for name in corpus.speakers}
    for row in rows:
        utterance = corpus.utterances[row]
        shutil.copyfile(corpus.folder / utterance.feature_path, folder / utterance.feature_path)
        entry = (utterance.feature_path, utterance.frames)
        assert utterance.speaker is not None
        labelled[corpus.speakers[utterance.speaker]].append(entry)
    write_manifests(folder, corpus.n_mels, labelled, [])


def split_corpus(folder: Path, data: Path, unseen: Path) -> None:
    """Write a corpus's utterances as two: those of the search, and those that it does not see."""
    corpus = read_corpus(folder)
    rows = permutation(len(corpus.utterances), 0, "unseen").tolist()
    count = round(UNSEEN_FRACTION * len(rows))
    create_once(unseen, lambda partial: write_part(corpus, sorted(rows[:count]), partial))
    create_once(data, lambda partial: write_part(corpus, sorted(rows[count:]), partial))


def main() -> None:
    """Train what is missing."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--corpus", default="demo", help="demo, or a corpus's folder")
    flags.add_argument("--points", type=int, default=250)
    flags.add_argument("--repeated", type=int, default=30, help="points trained on three seeds")
    flags.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each")
    flags.add_argument("--precision", default="auto")
    flags.add_argument("--state", type=Path, default=STATE, help="folder of packs and corpora")
    flags.add_argument("--out", type=Path, required=True, help="gzip file to add to")
    arguments = flags.parse_args()
    name = Path(arguments.corpus).name
    data, unseen = arguments.state / f"{name}-search", arguments.state / f"{name}-unseen"
    arguments.state.mkdir(exist_ok=True)
    if name == "demo":
        build_demo(data)
        create_once(unseen, write_unseen)
    else:
        split_corpus(Path(arguments.corpus), data, unseen)
    for folder in (data, unseen):
        open_pack(read_corpus(folder), arguments.state / "packs")
    base = DEMO_BUDGET if name == "demo" else CORPUS_BUDGET
    base = base.replace(valid_every=base.steps // RUNGS)
    configs = [
        point.replace(seed=seed)
        for number, point in enumerate(points(base, arguments.points))
        for seed in range(SEEDS if number < arguments.repeated else 1)
    ]
    done = {(*line["point"].values(), line["seed"]) for line in read_table(arguments.out)}
    missing = [config for config in configs if identity(config) not in done]
    compute = Compute(precision=find_precision(arguments.precision, torch.device("cpu")))
    about = {"corpus": name, "base": base.to_dict(), "origin": provenance(compute)}
    origins = arguments.out.with_suffix(".json")
    known = json.loads(origins.read_text()) if origins.exists() else []
    if about not in known:
        origins.write_text(json.dumps([*known, about], indent=1) + "\n")
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        tasks = [
            pool.submit(run, Task(config, data, unseen, arguments.state, arguments.precision))
            for config in missing
        ]
        for task in tqdm(as_completed(tasks), total=len(tasks), unit="training"):
            with gzip.open(arguments.out, "at") as stream:
                stream.write(json.dumps(task.result()) + "\n")


if __name__ == "__main__":
    main()
