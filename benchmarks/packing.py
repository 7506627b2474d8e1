"""Pack and read a generated corpus of the homework's shape: seconds, memory and bytes,
and what they come to in full.

`python -m benchmarks.packing` makes a tenth of the homework's labelled corpus (5,666 utterances of
600 speakers, random frames, lengths with the homework's median and mean) in a temporary folder of
1.3 GB, packs it, loads every file in a plain loop, and prints a table whose last column is
multiplied to the homework's 56,666 utterances.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from speaker.common.devices import Compute
from speaker.common.provenance import ROOT, provenance
from speaker.config import HOMEWORK_BASELINE
from speaker.data.batches import Batches
from speaker.data.corpus import read_corpus
from speaker.data.pack import open_pack
from speaker.data.protocol import Protocol

UTTERANCES, FRAMES, SPEAKERS = 56_666, 37_287_000, 600  # the homework's: 658 frames on average
OPEN_AND_READ = """
import resource, sys, time
from pathlib import Path
from speaker.data.corpus import read_corpus
from speaker.data.pack import open_pack
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = read_corpus(Path(sys.argv[1]))
began = time.perf_counter()
pack = open_pack(corpus, Path(sys.argv[2]))
seconds = time.perf_counter() - began
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def write_corpus(folder: Path, share: float) -> int:
    """Write a corpus of random frames in the homework's layout; return its number of frames."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    count = int(UTTERANCES * share)
    lengths = (
        (541 * (0.63 * torch.randn(count, generator=draw)).exp()).long().clamp(91, 7_193).tolist()
    )
    speakers: dict[str, list[dict[str, object]]] = {
        f"id{number:05d}": [] for number in range(SPEAKERS)
    }
    names = list(speakers)
    for number, length in enumerate(lengths):
        file = f"uttr-{number:032x}.pt"
        torch.save(torch.randn(length, 40, generator=draw), folder / file)
        speakers[names[number % SPEAKERS]].append({"feature_path": file, "mel_len": length})
    ids = {name: number for number, name in enumerate(names)}
    mapping = {"speaker2id": ids, "id2speaker": {str(number): name for name, number in ids.items()}}
    (folder / "mapping.json").write_text(json.dumps(mapping))
    (folder / "metadata.json").write_text(json.dumps({"n_mels": 40, "speakers": speakers}))
    (folder / "testdata.json").write_text(json.dumps({"n_mels": 40, "utterances": []}))
    return sum(lengths)


def measure(work: Path, share: float) -> dict[str, float]:
    """Return seconds, MiB and rates of one corpus."""
    frames = write_corpus(work / "corpus", share)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    corpus = read_corpus(work / "corpus")
    manifests = time.perf_counter() - began
    packing, loading = [], []
    for number in range(2):  # in turn, because the machine's speed varies
        began = time.perf_counter()
        pack = open_pack(corpus, work / f"packs{number}")
        packing.append(time.perf_counter() - began)
        began = time.perf_counter()
        for utterance in corpus.utterances:
            torch.load(corpus.folder / utterance.feature_path)
        loading.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - memory
    opened = subprocess.run(
        [sys.executable, "-c", OPEN_AND_READ, work / "corpus", work / "packs0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    rows, _ = Protocol().split(pack)
    batches = Batches(HOMEWORK_BASELINE, pack, rows)
    epoch = batches.draw_epoch(0)
    parts = (
        list(zip(epoch.rows.split(32), epoch.crop_offsets.split(32), epoch.is_padded, strict=False))
        * 500
    )
    batches.gather(*parts[0])
    began = time.perf_counter()
    for part in parts[:500]:
        batches.gather(*part)
    return {
        "utterances": len(pack),
        "frames": frames,
        "read manifests, s": manifests,
        "pack, s": min(packing),
        "torch.load of each file, s": min(loading),
        "packed utterances a second": len(pack) / min(packing),
        "packing speed over torch.load's": min(loading) / min(packing),
        "packing adds to memory, MiB": peak,
        "pack on disk, GB": pack.frames.numel() * 2 / 1e9,
        "open the pack, s": float(opened[0]),
        "opening adds to memory, MiB": float(opened[1]),
        "batches of 32 x 128 a second": 500 / (time.perf_counter() - began),
    }


def main() -> None:
    """Measure, print and optionally keep."""
    flags = argparse.ArgumentParser(description="Pack and read a corpus of the homework's shape.")
    flags.add_argument("--share", type=float, default=0.1, help="of the homework's labelled corpus")
    flags.add_argument("--out", type=Path, help="JSON file to keep the results in")
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as work:
        measured = measure(Path(work), arguments.share)
    times = UTTERANCES / measured["utterances"]
    growing = {
        "utterances",
        "frames",
        "read manifests, s",
        "pack, s",
        "torch.load of each file, s",
        "pack on disk, GB",
    }
    print(f"{'':<32} {'measured':>12} {f'x {times:.2f}':>12}")
    for name, value in measured.items():
        whole = f"{value * times:,.2f}" if name in growing else ""
        print(f"{name:<32} {value:>12,.2f} {whole:>12}".rstrip())
    if arguments.out:
        result = {
            "measured": measured,
            "origin": provenance(Compute(threads=torch.get_num_threads())),
        }
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
