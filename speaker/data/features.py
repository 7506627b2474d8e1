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
QUIET = 0.01  # of full scale, against the root mean square of the last LOUDNESS_WINDOW samples
LOUDNESS_WINDOW = SAMPLE_RATE // 50
LASTING = SAMPLE_RATE // 10  # samples: shorter silences stay, and shorter sounds go


def normalize_peak(waveform: Tensor) -> Tensor:
    """Scale a waveform (samples,) so that its highest peak lies at -3 dB of full scale;
    silence stays as it is.
    """
    peak = waveform.abs().max()
    return waveform * (10 ** (PEAK_DB / 20) / peak) if peak > 0 else waveform


def trim_silence(waveform: Tensor) -> Tensor:
    """Remove the silences of a waveform (samples,) at 16 kHz: at the start,
    and those of 0.1 s or more anywhere.

    Loudness is the root mean square of the last 20 ms and counts afresh behind each silence; sound
    begins with 0.1 s at or above 1 % and ends with 0.1 s below. Source: the effect `silence 1 0.1
    1% -1 0.1 1%` of SoX, sample for sample.
    """
    total = len(waveform)
    energy = torch.nn.functional.pad(waveform.double().square().cumsum(0), (1, 0))
    loud = _loud(energy, 0, total)
    sounds, silences = _lasting(loud), _lasting(~loud)
    quiet = torch.nn.functional.pad((~loud).nonzero()[:, 0], (0, 1), value=total)
    kept: list[Tensor] = []
    position = 0
    while position < total:
        # Until here the window has forgotten what came before.
        fresh = min(position + LOUDNESS_WINDOW, total)
        drops = (~_loud(energy, position, fresh)).nonzero()
        start = position + int(drops[-1]) + 1 if len(drops) else position
        if int(quiet[torch.searchsorted(quiet, fresh)]) - start < LASTING:
            start = _first(sounds, fresh, total)
        end = _first(silences, start + LASTING, total)
        kept.append(waveform[start:end])
        position = end + LASTING
    return torch.cat(kept) if kept else waveform


def log_mel(waveform: Tensor) -> Tensor:
    """Return log-mel features float32 (1 + samples // 160, 40) of a waveform (samples,) at 16 kHz.

    Power spectrogram of 25 ms Hann windows every 10 ms, centred and reflected at the ends; 40 HTK
    mel bands from 50 Hz to 8 kHz without normalisation; natural logarithm of max(energy, 1e-9).
    Source: github.com/yistLin/dvector, whose features the homework ships.
    """
    window = torch.hann_window(N_FFT, dtype=waveform.dtype)
    spectrum = torch.stft(
        waveform, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True
    )
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


def _loud(energy: Tensor, start: int, end: int) -> Tensor:
    """Return whether each of the samples from start to end is loud,
    when the window holds none before `start`.

    `energy` holds the sums of squares before each sample.
    """
    sums = energy[start + 1 : end + 1].clone()
    sums[:LOUDNESS_WINDOW] -= energy[start]
    sums[LOUDNESS_WINDOW:] -= energy[start + 1 : max(start + 1, end + 1 - LOUDNESS_WINDOW)]
    return sums >= LOUDNESS_WINDOW * QUIET**2


def _lasting(mask: Tensor) -> Tensor:
    """Return where the runs of LASTING or more true values begin."""
    edges = torch.nn.functional.pad(mask.to(torch.int8), (1, 1)).diff().nonzero()[:, 0]
    starts, ends = edges[::2], edges[1::2]
    return starts[ends - starts >= LASTING]


def _first(starts: Tensor, position: int, otherwise: int) -> int:
    """Return the first of the rising `starts` from a position on."""
    index = int(torch.searchsorted(starts, position))
    return int(starts[index]) if index < len(starts) else otherwise
