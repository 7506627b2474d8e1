"""The built-in demo corpus: source-filter speech of invented speakers, in the homework's layout.

A speaker is a vocal-tract length, formant habits, a pitch, a spectral tilt and a breathiness; an
utterance is a random string of phones, heard through a channel of its own and in noise. Nobody's
voice is in it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from speaker.common.files import create_once
from speaker.common.seeding import generator
from speaker.data.corpus import TEST_LABELS, read_corpus, write_manifests
from speaker.data.features import N_MELS, SAMPLE_RATE, log_mel, normalize_peak
from speaker.data.labels import write_csv

SPEAKERS = 20
TRAIN_PER_SPEAKER = 50
TEST_PER_SPEAKER = 4
SECONDS = (0.7, 2.2)
SNR_DB = (5.0, 25.0)
N_FFT, HOP = 512, 128

# Formants F1 to F3 in Hz and voicing, after Peterson and Barney (1952); the last rows are nasals
# and fricatives.
PHONES = torch.tensor(
    [
        (270, 2290, 3010, 1.0), (390, 1990, 2550, 1.0), (530, 1840, 2480, 1.0),
        (660, 1720, 2410, 1.0), (730, 1090, 2440, 1.0), (570, 840, 2410, 1.0),
        (440, 1020, 2240, 1.0), (300, 870, 2240, 1.0), (640, 1190, 2390, 1.0),
        (490, 1350, 1690, 1.0), (250, 1200, 2100, 0.9), (280, 1700, 2600, 0.9),
        (1800, 4500, 6500, 0.0), (1500, 2600, 5200, 0.0), (900, 1900, 3500, 0.1),
    ]
)  # fmt: skip
HIGHER_FORMANTS = torch.tensor((3500.0, 4500.0))
BANDWIDTHS = torch.tensor((80.0, 100.0, 140.0, 200.0, 250.0))  # Hz


@dataclass(frozen=True)
class Voice:
    """What stays the same whenever one speaker speaks."""

    pitch: float  # median F0, Hz
    pitch_range: float  # standard deviation of log F0
    tract: float  # vocal-tract length relative to the average; longer means lower formants
    formant_habits: Tensor  # (5,) factors on the formants
    tilt: float  # dB per octave above 200 Hz
    breathiness: float  # share of noise in voiced sound
    phone_seconds: float


def build_demo(folder: Path, seed: int = 0) -> None:
    """Make the demo corpus at `folder`, unless it is there: the same files for the same seed."""
    create_once(folder, lambda partial: _write_corpus(partial, seed))


def synthesize(voice: Voice, address: str) -> Tensor:
    """Return one utterance of a voice at 16 kHz, float32 (samples,);
    `address` decides what it says and where.
    """
    draw = generator(address)
    seconds = _between(SECONDS, draw)
    frames = int(seconds * SAMPLE_RATE / HOP)
    phones = _phone_track(voice, frames, draw)
    source = _excitation(voice, phones[:, 3], frames * HOP, draw)
    window = torch.hann_window(N_FFT)
    # (bins, frames + 1).
    spectrum = torch.stft(source, N_FFT, HOP, window=window, return_complex=True)
    envelope = _envelope(voice, phones)[: spectrum.shape[1]].T
    spectrum = spectrum * envelope * _channel(spectrum.shape[0], draw)[:, None]
    speech = torch.istft(spectrum, N_FFT, HOP, window=window, length=frames * HOP)
    noise = _colored_noise(len(speech), draw)
    snr = 10 ** (_between(SNR_DB, draw) / 20)
    return normalize_peak(speech / speech.std() + noise / noise.std() / snr)


def draw_voice(address: str) -> Voice:
    """Invent a speaker."""
    draw = generator(address)
    low_or_high = float(torch.rand((), generator=draw) < 0.5)
    return Voice(
        pitch=(115.0 + 85.0 * low_or_high) * 2 ** (0.22 * _normal(draw)),
        pitch_range=0.05 + 0.12 * _between((0, 1), draw),
        tract=1.04 - 0.10 * low_or_high + 0.045 * _normal(draw),
        formant_habits=1 + 0.05 * torch.randn(5, generator=draw),
        tilt=-6.0 - 2.5 * abs(_normal(draw)),
        breathiness=0.02 + 0.25 * _between((0, 1), draw) ** 2,
        phone_seconds=_between((0.06, 0.12), draw),
    )


def _phone_track(voice: Voice, frames: int, draw: torch.Generator) -> Tensor:
    """Return F1, F2, F3, voicing and loudness at every frame, (frames + 1, 5),
    gliding from phone to phone.
    """
    count = int(frames * HOP / SAMPLE_RATE / 0.03) + 2
    lengths = voice.phone_seconds * (0.5 + torch.rand(count, generator=draw)) * SAMPLE_RATE / HOP
    chosen = torch.randint(len(PHONES), (count,), generator=draw)
    loudness = 0.4 + 0.6 * torch.rand(count, 1, generator=draw)
    targets = torch.cat((PHONES[chosen], loudness), 1)
    which = torch.searchsorted(lengths.cumsum(0), torch.arange(frames + 1.0)).clamp_(max=count - 1)
    glide = torch.hann_window(9, periodic=False)[None, None] / 4
    track = torch.nn.functional.pad(targets[which].T[:, None], (4, 4), mode="replicate")
    return torch.nn.functional.conv1d(track, glide)[:, 0].T


def _excitation(voice: Voice, voicing: Tensor, samples: int, draw: torch.Generator) -> Tensor:
    """Return glottal pulses where voiced and noise where not, (samples,)."""
    knots = torch.randn(1, 1, 6, generator=draw) * voice.pitch_range
    contour = torch.nn.functional.interpolate(knots, samples, mode="linear", align_corners=True)[
        0, 0
    ]
    phase = (voice.pitch * contour.exp() / SAMPLE_RATE).double().cumsum(0)
    pulses = (
        torch.diff(phase.floor(), prepend=phase.new_zeros(1)).float()
        * (SAMPLE_RATE / voice.pitch) ** 0.5
    )
    noise = torch.randn(samples, generator=draw)
    voiced = torch.nn.functional.interpolate(voicing[None, None], samples, mode="linear")[
        0, 0
    ].clamp(0, 1)
    return (
        voiced * ((1 - voice.breathiness) * pulses + voice.breathiness * noise)
        + (1 - voiced) * 0.5 * noise
    )


def _envelope(voice: Voice, phones: Tensor) -> Tensor:
    """Return the vocal tract's gain at every frame and bin, (frames + 1, bins): five resonances,
    a tilt, a loudness.
    """
    hertz = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    formants = (
        torch.cat((phones[:, :3], HIGHER_FORMANTS.expand(len(phones), 2)), 1)
        * voice.formant_habits
        / voice.tract
    )
    gain = torch.ones(len(phones), len(hertz))
    for number, bandwidth in enumerate(BANDWIDTHS.tolist()):
        center = formants[:, number, None]
        gain = (
            gain
            * center.square()
            / torch.hypot(center.square() - hertz.square(), bandwidth * hertz)
        )
    octaves = (hertz / 200).clamp(min=1).log2()
    return gain.clamp(max=100) * 10 ** (voice.tilt * octaves / 20) * phones[:, 4:]


def _channel(bins: int, draw: torch.Generator) -> Tensor:
    """Return a smooth random gain of a few dB over frequency, (bins,)."""
    place = torch.linspace(0, torch.pi, bins)
    waves = torch.stack([(order * place).cos() for order in range(1, 6)])
    return 10 ** ((torch.randn(5, generator=draw) * 3.0) @ waves / 20)


def _colored_noise(samples: int, draw: torch.Generator) -> Tensor:
    """Return noise between white and brown, (samples,)."""
    spectrum = torch.fft.rfft(torch.randn(samples, generator=draw))
    slope = _between((0.0, 1.0), draw)
    return torch.fft.irfft(spectrum / torch.arange(1, len(spectrum) + 1) ** slope, samples)


def _write_corpus(folder: Path, seed: int) -> None:
    folder.mkdir()
    names = [f"id{1 + 7 * number:05d}" for number in range(SPEAKERS)]
    voices = [draw_voice(f"{seed}/voice/{name}") for name in names]
    labelled: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    test: dict[tuple[str, int], str] = {}  # with their speakers
    per_speaker = TRAIN_PER_SPEAKER + TEST_PER_SPEAKER
    with tqdm(
        total=SPEAKERS * per_speaker,
        desc="synthesising the demo corpus",
        unit="utterance",
        disable=None,
    ) as bar:
        for name, voice in zip(names, voices, strict=True):
            for number in range(per_speaker):
                address = f"{seed}/utterance/{name}/{number}"
                entry = _write_utterance(folder, log_mel(synthesize(voice, address)), address)
                if number < TRAIN_PER_SPEAKER:
                    labelled[name].append(entry)
                else:
                    test[entry] = name
                bar.update()
    write_manifests(folder, N_MELS, labelled, sorted(test))
    write_csv(folder / TEST_LABELS, read_corpus(folder), [test[entry] for entry in sorted(test)])


def _write_utterance(folder: Path, mels: Tensor, address: str) -> tuple[str, int]:
    name = f"uttr-{hashlib.md5(address.encode(), usedforsecurity=False).hexdigest()}.pt"
    torch.save(mels, folder / name)
    return name, len(mels)


def _between(limits: tuple[float, float], draw: torch.Generator) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(torch.rand((), generator=draw))


def _normal(draw: torch.Generator) -> float:
    return float(torch.randn((), generator=draw))
