"""Audio to features: `speaker.sources.prepare` against a plain single-process loop over librosa,
seconds and memory in one run.

`python -m benchmarks.prepare` writes recordings of invented speakers as long as VoxCeleb2's, or
takes `--audio FOLDER`, and prepares them both ways in turn. The loop does the same work as one
would write it: load and resample, scale the peak, cut silences out, log-mel, save.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile
import torch

from speaker.common.devices import Compute
from speaker.common.provenance import ROOT, provenance
from speaker.sources.demo import draw_voice, synthesize
from speaker.sources.recordings import find_recordings

OURS = """
import sys, time
from pathlib import Path
from speaker.sources.prepare import PrepareOptions
from speaker.sources.prepare import prepare
if __name__ == "__main__":
    began = time.perf_counter()
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareOptions(workers=int(sys.argv[3])))
    print(time.perf_counter() - began)  # its processes' start included
"""
LOOP = """
import sys, time
from pathlib import Path
import librosa
import numpy as np
import torch
def extract(path, target):
    waveform, _ = librosa.load(path, sr=16_000)
    waveform *= 10 ** (-3 / 20) / np.abs(waveform).max()
    loud = librosa.effects.split(waveform, top_db=37)
    waveform = np.concatenate([waveform[a:b] for a, b in loud])
    energies = librosa.feature.melspectrogram(
        y=waveform, sr=16_000, n_fft=400, hop_length=160, n_mels=40,
        fmin=50, fmax=8_000, htk=True, norm=None,
    )  # fmt: skip
    torch.save(torch.from_numpy(np.log(np.maximum(energies, 1e-9)).T), target)
audio, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
paths = sorted(path for path in audio.rglob("*") if path.suffix in (".wav", ".flac"))
extract(paths[0], out / "warm-up.pt")  # librosa compiles on first use
began = time.perf_counter()
for number, path in enumerate(paths):
    extract(path, out / f"uttr-{number:032x}.pt")
print(time.perf_counter() - began)
"""


def write_audio(folder: Path, count: int, seconds: float) -> None:
    """Write recordings of invented speakers at 16 kHz, half wav, half FLAC."""
    for number in range(count):
        speaker = f"id{number % 10:05d}"
        voice = draw_voice(speaker)
        parts = [synthesize(voice, f"{number}/{part}") for part in range(int(seconds / 1.45))]
        (folder / speaker).mkdir(parents=True, exist_ok=True)
        path = folder / speaker / f"{number:05d}.{('wav', 'flac')[number % 2]}"
        soundfile.write(path, torch.cat(parts).numpy(), 16_000)


def timed(script: str, *words: object) -> tuple[float, float]:
    """Return the seconds that a script prints and the memory of its largest process, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(script)
        command = [sys.executable, str(path), *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return float(output), usage.ru_maxrss / 1024


def main() -> None:
    """Measure, print and optionally keep."""
    flags = argparse.ArgumentParser(
        description="Audio to features, against a plain loop over librosa."
    )
    flags.add_argument(
        "--audio", type=Path, help="folder with a folder of wav and FLAC files for each speaker"
    )
    flags.add_argument(
        "--count", type=int, default=1500, help="recordings to write where no --audio is given"
    )
    flags.add_argument("--seconds", type=float, default=8.0, help="length of each")
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="each way is run so often, in turn; the fastest counts",
    )
    flags.add_argument("--out", type=Path, help="JSON file to keep the results in")
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        audio = arguments.audio or work / "audio"
        if not arguments.audio:
            write_audio(audio, arguments.count, arguments.seconds)
        count = len(find_recordings(audio)[0])
        ours, loop = [], []
        for number in range(arguments.rounds):
            ours.append(timed(OURS, audio.resolve(), work / f"ours{number}", arguments.workers))
            loop.append(timed(LOOP, audio.resolve(), work / f"loop{number}"))
    seconds, plain = min(ours)[0], min(loop)[0]
    measured = {
        "recordings": count,
        "prepare, recordings a second": count / seconds,
        "librosa in a loop, recordings a second": count / plain,
        "prepare over librosa": plain / seconds,
        "prepare, MiB of its largest process": max(memory for _, memory in ours),
        "librosa, MiB": max(memory for _, memory in loop),
    }
    for name, value in measured.items():
        print(f"{name:<40} {value:>10,.2f}")
    if arguments.out:
        settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
        result = {
            "measured": measured,
            "settings": settings,
            "origin": provenance(Compute(threads=torch.get_num_threads())),
        }
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
