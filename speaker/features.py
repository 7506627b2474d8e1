"""Waveform to log-mel features, as the dvector project made the homework's."""

import functools
import math

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
N_MELS = 40
N_FFT = 400  # 25 ms
HOP = 160  # 10 ms
LOWEST_HZ, HIGHEST_HZ = 50.0, 8_000.0
FLOOR = 1e-9  # of a mel energy; its logarithm is -20.7233
PEAK_DB = -3.0


def normalize_peak(waveform: Tensor) -> Tensor:
    """Scale a waveform (samples,) so that its highest peak lies at -3 dB of full scale; silence stays as it is."""
    peak = waveform.abs().max()
    return waveform * (10 ** (PEAK_DB / 20) / peak) if peak > 0 else waveform


def log_mel(waveform: Tensor) -> Tensor:
    """Return log-mel features float32 (1 + samples // 160, 40) of a waveform (samples,) at 16 kHz.

    Power spectrogram of 25 ms Hann windows every 10 ms, centred and reflected at the ends; 40 HTK mel bands from 50 Hz
    to 8 kHz without normalisation; natural logarithm of max(energy, 1e-9).
    Source: github.com/yistLin/dvector, whose features the homework ships.
    """
    window = torch.hann_window(N_FFT, dtype=waveform.dtype)
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    energies = spectrum.abs().square().T @ mel_filters().to(waveform.dtype)
    return energies.clamp(min=FLOOR).log().to(torch.float32)


@functools.cache
def mel_filters() -> Tensor:
    """Return the triangular HTK mel filterbank, float64 (n_fft // 2 + 1, n_mels)."""
    bins = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (LOWEST_HZ, HIGHEST_HZ))
    edges = 700 * (10 ** (torch.linspace(low, high, N_MELS + 2, dtype=torch.float64) / 2595) - 1)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
