import math

import librosa
import numpy as np
import pytest
import torch

from speaker.common.seeding import generator
from speaker.data.features import (
    FLOOR,
    SAMPLE_RATE,
    log_mel,
    mel_filters,
    normalize_peak,
    trim_silence,
)
from speaker.sources.demo import draw_voice, synthesize


def tone(hertz: float, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


def test_a_frame_every_ten_milliseconds() -> None:
    assert log_mel(torch.randn(16_000)).shape == (101, 40)
    assert log_mel(torch.randn(16_000)).dtype == torch.float32


def test_silence_lies_on_the_floor() -> None:
    assert torch.allclose(log_mel(torch.zeros(1_600)), torch.tensor(math.log(FLOOR)))
    assert round(math.log(FLOOR), 4) == -20.7233


def test_a_tone_sounds_in_its_band() -> None:
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (50, 8_000))
    centers = [
        700 * (10 ** (mel / 2595) - 1) for mel in torch.linspace(low, high, 42).tolist()[1:-1]
    ]
    for band in (5, 20, 35):
        assert log_mel(tone(centers[band]))[25].argmax() == band


def test_power_is_two() -> None:
    loud, soft = log_mel(tone(1_000)), log_mel(tone(1_000) / 10)
    assert torch.allclose((loud - soft)[25, 14:17], torch.tensor(math.log(100.0)), atol=0.01)


def test_filters_are_triangles_of_height_one_at_most() -> None:
    filters = mel_filters()
    assert filters.shape == (201, 40)
    assert filters.max() <= 1
    assert (filters.sum(0) > 0).all()
    assert filters[0].sum() == 0


def test_peak_is_three_decibels_below_full_scale() -> None:
    assert math.isclose(
        20 * math.log10(normalize_peak(tone(300) * 0.01).abs().max()), -3.0, abs_tol=1e-4
    )
    assert torch.equal(normalize_peak(torch.zeros(5)), torch.zeros(5))


def reference_log_mel(waveform: np.ndarray) -> np.ndarray:
    """The same features by another library, in double precision."""
    spectrum = librosa.stft(
        waveform.astype(np.float64), n_fft=400, hop_length=160, center=True, pad_mode="reflect"
    )
    filters = librosa.filters.mel(
        sr=16_000, n_fft=400, n_mels=40, fmin=50, fmax=8_000, htk=True, norm=None
    )
    return np.log(np.maximum(filters @ np.abs(spectrum) ** 2, 1e-9)).T


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_equals_librosa(name: str) -> None:
    waveform = synthesize(draw_voice(name), name)
    difference = np.abs(log_mel(waveform).numpy() - reference_log_mel(waveform.numpy()))
    assert difference.max() < 2e-3
    assert difference.mean() < 1e-5


def reference_trim(waveform: list[float]) -> list[int]:
    """The numbers of the samples that SoX's effect `silence 1 0.1 1% -1 0.1 1%` keeps,
    one sample at a time.
    """
    kept: list[int] = []
    held: list[int] = []  # those that may yet turn out to be sound, or silence
    window = [0.0] * 320
    searching = True
    for number, sample in enumerate(waveform):
        window = [*window[1:], sample * sample]
        loud = math.sqrt(sum(window) / 320) >= 0.01
        if searching:
            held = [*held, number] if loud else []
            if len(held) == 1_600:
                kept, held, searching = kept + held, [], False
        elif loud:
            kept, held = [*kept, *held, number], []
        else:
            held.append(number)
            if len(held) == 1_600:
                held, searching, window = [], True, [0.0] * 320
    return kept if searching else kept + held


@pytest.mark.parametrize("seed", range(6))
def test_trims_as_sox_does(seed: int) -> None:
    draw = generator(seed, "trim")
    lengths = torch.randint(100, 4_000, (5,), generator=draw).tolist()
    levels = (10 ** (-3 + 2 * torch.rand(5, generator=draw))).tolist()
    parts = [
        level * torch.randn(length, generator=draw)
        for level, length in zip(levels, lengths, strict=True)
    ]
    waveform = torch.cat(parts)
    assert torch.equal(trim_silence(waveform), waveform[reference_trim(waveform.tolist())])


@pytest.mark.parametrize(
    ("waveform", "length"),
    [
        (torch.zeros(0), 0),
        (torch.ones(1), 0),
        (torch.zeros(50_000), 0),
        (tone(300, 0.09), 0),
        (tone(300, 0.2), 3_198),
        (torch.cat((torch.zeros(8_000), torch.ones(1_600))), 1_600),
        (torch.full((4_000,), 0.0099), 0),
        (torch.full((4_000,), 0.0101), 4_000 - 313),  # the window fills with it first
    ],
)
def test_what_is_left_of_silence_and_sound(waveform: torch.Tensor, length: int) -> None:
    assert len(trim_silence(waveform)) == length


def test_a_silence_goes_and_a_pause_stays() -> None:
    sound = tone(300, 0.3)
    pause, silence = torch.zeros(1_500), torch.zeros(16_000)
    trimmed = trim_silence(torch.cat((silence, sound, pause, sound, silence, sound)))
    assert 0 < len(trimmed) - (3 * len(sound) + len(pause)) < 700, (
        "the window's memory alone remains"
    )
