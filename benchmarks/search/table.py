"""Train points of the homework's space and keep their learning curves: what searches are judged by.

`python -m benchmarks.search.table --corpus demo --points 250 --out FILE` trains a random sample of
the space's 600 points, the first `--repeated` of them on three seeds, and adds a line of JSON for
each to a gzip file. A line holds which utterances of a pool the model got right at each rung, a bit
an utterance. The pool is the validation part and twice as many utterances that nothing else uses: a
replay draws its validation part from it, and what a model is worth in truth is its accuracy on the
whole. Run again, it adds what is missing; `--best N` adds seeds for the N best points so far.
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
from torch import Tensor, nn
from tqdm import tqdm

from experiments.proposals.space import HOMEWORK
from speaker.common.devices import Compute, ThreadPool, find_precision
from speaker.common.files import create_once
from speaker.common.paths import STATE
from speaker.common.provenance import provenance
from speaker.common.seeding import permutation
from speaker.config import DEMO_BUDGET, HOMEWORK_BASELINE, TrialConfig
from speaker.data.corpus import Corpus, read_corpus, write_manifests
from speaker.data.features import N_MELS, log_mel
from speaker.data.pack import Pack, open_pack
from speaker.data.protocol import Protocol
from speaker.sources.demo import (
    SPEAKERS,
    TEST_PER_SPEAKER,
    TRAIN_PER_SPEAKER,
    build_demo,
    draw_voice,
    synthesize,
)
from speaker.training.evaluation import evaluating
from speaker.training.metrics import hex_of, hits_of
from speaker.training.train import open_learner

RUNGS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # of the budget: where a model is evaluated
SEEDS = 3  # of the points that are repeated
UNSEEN_PER_SPEAKER = 10  # utterances of the demo's speakers
UNSEEN_FRACTION = 0.25  # of another corpus
CORPUS_BUDGET = HOMEWORK_BASELINE.with_steps(200).replace(segment_len=32)
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
    config = task.config
    pack = open_pack(read_corpus(task.data), task.state / "packs")
    unseen = open_pack(read_corpus(task.unseen), task.state / "packs")
    rows, valid = PROTOCOL.split(pack)
    compute = Compute(precision=find_precision(task.precision, torch.device("cpu")))
    rungs = {round(fraction * config.steps) for fraction in RUNGS}
    told: list[tuple[int, str]] = []
    seconds = 0.0
    with ThreadPool(1) as pool, open_learner(config, pack, rows, compute, pool) as learner:
        for step in range(config.steps):
            begun = time.process_time()  # of one thread: other work does not count
            learner.step(step)
            seconds += time.process_time() - begun
            if step + 1 in rungs:
                parts = (pack, valid), (unseen, torch.arange(len(unseen)))
                with evaluating(learner.model):
                    found = [hits(learner.model, *part) for part in parts]
                told.append((step + 1, hex_of(torch.cat(found))))
    return {
        "point": {name: getattr(config, name) for name in HOMEWORK.definition()},
        "seed": config.seed,
        "precision": compute.precision_name,
        "seconds": round(seconds, 2),  # of the steps alone
        "valid": len(valid),
        "hits": told,
    }


@torch.inference_mode()
def hits(model: nn.Module, pack: Pack, rows: Tensor) -> Tensor:
    """Return whether each of some utterances is told right, bool (len(rows),)."""
    found = torch.empty(len(rows), dtype=torch.bool)
    for part in pack.lengths[rows].argsort().split(8):  # of like lengths
        mels, lengths = pack.gather(rows[part], 0, int(pack.lengths[rows[part]].max()))
        found[part] = model(mels, lengths).argmax(1) == pack.labels[rows[part]]
    return found


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table; one cut off by a kill is left out."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        with gzip.open(path, "rt") as stream, contextlib.suppress(EOFError, ValueError):
            lines.extend(json.loads(line) for line in stream)
    return lines


def best_points(lines: list[dict[str, Any]], base: TrialConfig, count: int) -> list[TrialConfig]:
    """Return the points of which the first seed told most of the pool right."""
    first = [line for line in lines if line["seed"] == 0]
    first.sort(key=lambda line: -sum(hits_of(line["hits"][-1][1])))
    return [base.replace(**line["point"]) for line in first[:count]]


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
    flags.add_argument("--best", type=int, default=0, help="points so far that are, too")
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
    lines = read_table(arguments.out)
    repeated = {*points(base, arguments.repeated), *best_points(lines, base, arguments.best)}
    configs = [
        point.replace(seed=seed)
        for seed in range(SEEDS)
        for point in points(base, arguments.points)
        if point in repeated or not seed
    ]
    done = {(*line["point"].values(), line["seed"]) for line in lines}
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
