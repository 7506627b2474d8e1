import math

import torch

from speaker.features import FLOOR, SAMPLE_RATE, log_mel, mel_filters, normalize_peak


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
    centers = [700 * (10 ** (mel / 2595) - 1) for mel in torch.linspace(low, high, 42).tolist()[1:-1]]
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
    assert math.isclose(20 * math.log10(normalize_peak(tone(300) * 0.01).abs().max()), -3.0, abs_tol=1e-4)
    assert torch.equal(normalize_peak(torch.zeros(5)), torch.zeros(5))
