"""Audio files to waveforms: decoded, mixed to one channel, resampled. Files come from strangers."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soxr
import torch
from torch import Tensor

from speaker.common.errors import UserError
from speaker.data.features import SAMPLE_RATE

# The demuxer is fixed by the name's ending: FFmpeg's guessing would follow a playlist in disguise to other files.
DEMUXERS = {".wav": "wav", ".flac": "flac", ".ogg": "ogg", ".mp3": "mp3", ".m4a": "mov"}
LONGEST = 600  # seconds of one recording: bounds time and memory
MOST_CHANNELS = 64
MISSING = 0.02  # seconds that a decoder may owe to what the header declares: codecs skip their own delay
LAST_PAGE = 65_307  # bytes of the longest Ogg page
FULL_SCALE = {"s16": 2**15, "s16p": 2**15, "s32": 2**31, "s32p": 2**31, "flt": 1, "fltp": 1}  # by sample format
MP3_RATES = {0: 44_100, 1: 48_000, 2: 32_000}  # of MPEG 1; half of it in MPEG 2, a quarter in 2.5
MP3_KILOBITS = (  # a second, by the header's index: MPEG 2 and 2.5, MPEG 1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
)
PROBING = {"probesize": "4096"}  # of a wav: FFmpeg would read half of it to guess what its header says
STRICT = {"err_detect": "crccheck+explode"}


def read_audio(path: Path) -> Tensor:
    """Return a recording as one channel, the mean of its own, float32 (samples,) at 16 kHz.

    Resampled by soxr, the library form of the effect `rate` that made the homework's features. Raises UserError for a
    file that is no regular file, cannot be decoded, is cut off, silent of samples or longer than LONGEST seconds.
    """
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: a recording must be a regular file, but this is none; put the file itself there")
    try:
        if path.suffix.lower() == ".ogg" and not _ogg_ends(path):
            raise UserError(f"{path}: a recording must be whole, but its last page is missing; fetch it again")
        waveform = np.concatenate([*_resampled(path)])
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:100]
        raise UserError(f"{path}: a recording must be decodable, but is not ({reason}); fetch it again") from error
    if not len(waveform):
        raise UserError(
            f"{path}: a recording must hold sound, but holds too little for one sample at 16 kHz; remove it"
        )
    if not np.isfinite(waveform).all():
        raise UserError(f"{path}: a recording must hold finite samples, but one is none; fetch it again")
    return torch.from_numpy(waveform)


def _resampled(path: Path) -> Iterator[np.ndarray]:
    """Yield the recording at 16 kHz, piece by piece."""
    demuxer = DEMUXERS[path.suffix.lower()]
    with av.open(f"file:{path}", "r", format=demuxer, options=PROBING if demuxer == "wav" else {}) as container:
        track = next(iter(container.streams.audio), None)
        if track is None or track.codec_context is None:
            raise UserError(f"{path}: a recording must hold sound of a known codec, but holds none; remove it")
        track.codec_context.options = STRICT
        resampler, samples, rate = None, 0, 0
        for mono, now in _decoded(container, track, path):
            if rate not in (0, now):
                raise UserError(f"{path}: a recording must keep one sampling rate, but changes from {rate} to {now}")
            rate = now
            samples += len(mono)
            if samples > LONGEST * rate:
                raise UserError(f"{path}: a recording must last at most {LONGEST} s, but lasts longer; split it")
            if rate == SAMPLE_RATE:
                yield mono
                continue
            resampler = resampler or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            yield resampler.resample_chunk(mono)
        if not samples:
            raise UserError(f"{path}: a recording must hold sound, but holds no sample; remove it")
        declared = float(track.duration * track.time_base) if track.duration and track.time_base else 0.0
        if samples / rate < declared - MISSING:
            raise UserError(
                f"{path}: a recording must be whole, but its header declares {declared:.2f} s and "
                f"{samples / rate:.2f} s can be decoded; fetch it again"
            )
        if resampler:
            yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _decoded(
    container: av.container.InputContainer, track: av.AudioStream, path: Path
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (one channel float32 (samples,), sampling rate) as it is decoded."""
    converter = None
    for packet in container.demux(track):
        if packet.is_corrupt or (track.codec_context.name.startswith("mp3") and _mp3_is_cut(bytes(packet))):
            raise UserError(f"{path}: a recording must be whole, but is cut off; fetch it again")
        for frame in packet.decode():
            channels = frame.layout.nb_channels
            if channels > MOST_CHANNELS:
                raise UserError(f"{path}: a recording must have at most {MOST_CHANNELS} channels, but has more; mix it")
            if channels == 1 and frame.format.name in FULL_SCALE and not converter:
                yield frame.to_ndarray()[0] / np.float32(FULL_SCALE[frame.format.name]), frame.sample_rate
                continue
            converter = converter or av.AudioResampler(format="flt")  # the number format alone
            for converted in converter.resample(frame):
                yield converted.to_ndarray().reshape(-1, channels).mean(1), converted.sample_rate


def _mp3_is_cut(packet: bytes) -> bool:
    """Return whether a frame of MPEG layer III is shorter than its own header says, as the last of a cut file is."""
    if len(packet) < 4 or packet[1] >> 1 & 3 != 1:  # nothing, or another layer
        return False
    version, rate = packet[1] >> 3 & 3, MP3_RATES.get(packet[2] >> 2 & 3, 0)
    kilobits = MP3_KILOBITS[version == 3][packet[2] >> 4]
    if not rate or not kilobits:
        return False
    slots = 144_000 * kilobits // rate if version == 3 else 72_000 * kilobits // (rate // (2 if version == 2 else 4))
    return len(packet) < slots + (packet[2] >> 1 & 1)


def _ogg_ends(path: Path) -> bool:
    """Return whether an Ogg file holds its last page, the one that is marked so, to its end."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LAST_PAGE))
        tail = stream.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27 or not tail[page + 5] & 4:
        return False
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    return len(tail) >= page + 27 + len(segments) + sum(segments)
