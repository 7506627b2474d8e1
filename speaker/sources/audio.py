"""Audio files to waveforms: decoded, mixed to one channel, resampled. Files come from strangers."""

import contextlib
import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soxr
import torch
from av.container import InputContainer
from torch import Tensor

from speaker.common.errors import UserError
from speaker.data.features import SAMPLE_RATE

# The formats that are read, by FFmpeg's demuxer: name, how a file begins, endings of file names.
# Each demuxer here opens one file; FFmpeg's guessing would follow a playlist in disguise to others.
FORMATS = {
    "wav": ("WAV", rb"(RIFF|RIFX|RF64|BW64)....WAVE", (".wav", ".wave")),
    "flac": ("FLAC", rb"fLaC", (".flac",)),
    "ogg": ("Ogg", rb"OggS", (".ogg", ".oga", ".opus", ".spx")),
    "mp3": ("MP3", rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][^\xf0-\xff]", (".mp3",)),
    "mov": ("MP4", rb"....ftyp", (".m4a", ".mp4", ".m4b", ".3gp")),
    "aac": ("AAC", rb"\xff[\xf0\xf1\xf8\xf9]", (".aac",)),
    "matroska": ("Matroska", rb"\x1a\x45\xdf\xa3", (".webm", ".mka")),
    "aiff": ("AIFF", rb"FORM....AIF[FC]", (".aiff", ".aif", ".aifc")),
    "caf": ("CAF", rb"caff", (".caf",)),
    "au": ("AU", rb"\.snd", (".au", ".snd")),
    "amr": ("AMR", rb"#!AMR(-WB)?\n", (".amr",)),
    "nistsphere": ("NIST SPHERE", rb"NIST_1A", (".sph", ".nist")),
}
DEMUXERS = {ending: demuxer for demuxer, (_, _, endings) in FORMATS.items() for ending in endings}
CONVERT, REPLACE = "convert it to wav or flac", "put the recording itself there"
FOREIGN = {  # what else bears a recording's name: how it begins, and what to do with it
    "WMA": (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", CONVERT),
    "WavPack": (rb"wvpk", CONVERT),
    "Monkey's Audio": (rb"MAC ", CONVERT),
    "True Audio": (rb"TTA\d", CONVERT),
    "Wave64": (rb"riff\x2e\x91\xcf\x11", CONVERT),
    "AVI": (rb"RIFF....AVI ", CONVERT),
    "AAC without frame headers": (rb"ADIF", CONVERT),
    "MIDI, which holds notes": (rb"MThd", REPLACE),
    "a playlist": (rb"#EXTM3U|ffconcat|\[playlist\]", REPLACE),
    "a web page": (rb"(?i:\s*<(!doctype html|html))", "fetch the recording itself"),
    "a pointer of Git LFS": (rb"version https://git-lfs", "run git lfs pull"),
    "a zip archive": (rb"PK\x03\x04", "unpack it"),
    "a gzip archive": (rb"\x1f\x8b", "unpack it"),
}
CUT = "be whole, but this {} file is cut off; fetch it again, or remove it"
NO_SAMPLE = "hold sound, but holds no sample; remove it"
UNKNOWN = (0x7FFF, 0x8000, 0xFFFF, 2**48 - 1)  # the upper bits of a size that stands for none
MAX_CHUNKS = 1_000  # that are looked at
SOUND_CHUNK = {"wav": b"data", "aiff": b"SSND", "caf": b"data"}
PADDING_BYTES = 4 << 20  # behind the sound: FFmpeg looks for chunks in it
HEAD = 4096  # bytes that are looked at
MAX_SECONDS = 600  # seconds of one recording: bounds time and memory
MAX_CHANNELS = 64
# MiB of one recording, more than MAX_SECONDS can take: FFmpeg seeks sound through all that there is
MAX_MIB = {"mp3": 128, "aac": 128, "amr": 128, "ogg": 128, "flac": 256, "matroska": 512}
MAX_MIB_PLAIN = 1_024  # in any other format
CANCELLED = 0.02  # of the power that unrelated channels leave in their mean
MISSING = 0.02  # seconds that a decoder may owe to the header: codecs skip their own delay
MISSING_MATROSKA = 0.1  # there the header counts whole packets, and the delay
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # each byte's bits
FULL_SCALE = {"s16": 2**15, "s16p": 2**15, "s32": 2**31, "s32p": 2**31, "flt": 1, "fltp": 1}
MP3_RATES = {0: 44_100, 1: 48_000, 2: 32_000}  # of MPEG 1; half of it in MPEG 2, a quarter in 2.5
MP3_KILOBITS = (  # a second, by the header's index: MPEG 2 and 2.5, MPEG 1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
)
MP3_COUNT = re.compile(rb"(Xing|Info)\0{3}[\x01\x03\x05\x07\x09\x0b\x0d\x0f](?!\0{4})|VBRI")
STRICT = {"err_detect": "crccheck+explode"}
OPENING = {"wav": {"probesize": "4096"}}  # FFmpeg would read half of it to guess


@dataclass(frozen=True)
class Sound:
    """A recording as it is used, and how it was found."""

    waveform: Tensor  # (samples,) at 16 kHz
    rate: int  # at which it was recorded
    format: str  # as people call it
    misnamed: bool  # whether the file's name says another format


@dataclass(frozen=True)
class Source:
    """A file and its format: as its first bytes show, or else as its name says."""

    path: Path
    demuxer: str  # of FORMATS
    shown: bool  # by its first bytes
    head: bytes  # these, behind an ID3 tag
    streamed: bool = False  # by a program that did not know how long it would become


@dataclass
class Heard:
    """What is learnt of a recording while it is decoded; powers are sums of squares."""

    rate: int = 0
    count: int = 1  # of channels
    mean: float = 0.0  # power of the channels' mean
    total: float = 0.0  # power of all channels

    def mix(self, samples: np.ndarray, channel: int | None) -> np.ndarray:
        """Return the mean of samples (samples, channels), or a channel; (samples,) are mono."""
        if samples.ndim == 1:
            return samples
        if channel is not None:
            return samples[:, channel]
        mean = samples.mean(1)
        self.count = samples.shape[1]
        self.mean += float(np.dot(mean, mean))
        self.total += float(np.vdot(samples, samples))
        return mean

    def cancel(self) -> bool:
        """Return whether the channels extinguish each other in their mean."""
        return self.mean < CANCELLED * self.total / self.count**2


def read_audio(path: Path) -> Tensor:
    """Return the waveform that `read_sound` reads."""
    return read_sound(path).waveform


def read_sound(path: Path) -> Sound:
    """Return a recording as one channel (samples,) at 16 kHz: the mean of its own.

    Where that mean has less than a fiftieth of the power that unrelated channels would leave in it,
    they cancel: they are one voice in opposite phase, as from a cable that is wired wrongly.
    Then the loudest channel alone is taken, which is that voice; what is left of the mean may be
    nothing, or noise.

    Resampled by soxr, the library form of the effect `rate` that made the homework's features. In
    float32; in float64 where one channel of 24 or 32 bit integers is at 16 kHz already, since
    features that were made so must stay the same to the byte. Raises UserError for a file that is
    not a regular one, cannot be decoded, is cut off, has no sample or lasts more than MAX_SECONDS
    seconds.
    """
    if path.is_symlink() or not path.is_file():
        raise _refusal(path, "be a regular file, but this is not; put the file itself there")
    try:
        source = _find_source(path)
    except OSError as error:
        reason = f"is not ({error.strerror})"
        raise _refusal(path, f"be readable, but {reason}; change that, or remove it") from error
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # of samples that are refused below
            waveform, rate = _read(source)
    except (av.FFmpegError, ValueError) as error:
        raise _refusal(path, f"be decodable, but {_fault(source, error)}") from error
    if not len(waveform):
        raise _refusal(path, "hold sound, but holds too little for one sample at 16 kHz; remove it")
    if not np.isfinite(waveform).all():
        raise _refusal(path, "hold finite samples, but has NaN or infinity; export it again")
    misnamed = source.demuxer != DEMUXERS.get(path.suffix.lower())
    return Sound(torch.from_numpy(waveform), rate, FORMATS[source.demuxer][0], misnamed)


def _refusal(path: Path, must: str) -> UserError:
    return UserError(f"{path}: a recording must {must}")


def _find_source(path: Path) -> Source:
    """Look at a file's first bytes."""
    named = DEMUXERS.get(path.suffix.lower(), "")
    with path.open("rb") as stream:
        head = stream.read(HEAD)
        tagged = head[:3] == b"ID3" and len(head) >= 10
        if tagged:  # before a FLAC, too
            a, b, c, d = head[6:10]  # seven bits each
            stream.seek(10 + (a << 21) + (b << 14) + (c << 7) + d)
            head = stream.read(HEAD)
        shown = _shown(head) or ("mp3" if tagged else "")
        if (named, shown, head[20:22]) == ("mp3", "wav", b"\x55\0"):
            shown = "mp3"  # in the clothes of a wav, but its name is right
        if not shown:
            _refuse_foreign(head, path)
        _check_size(stream, shown or named, path)
        if not shown and not named:
            fault = _fault(Source(path, "", False, head, False), ValueError())
            raise _refusal(path, f"be decodable, but {fault}")
        if shown in SOUND_CHUNK and not tagged:
            _check_chunks(stream, shown, path)
        streamed = shown in ("wav", "caf") and not tagged and _is_streamed(stream, shown, path)
    return Source(path, shown or named, bool(shown), head, streamed)


def _shown(head: bytes) -> str:
    """Return the demuxer of the format that a file's first bytes show, if they show one."""
    for demuxer, (_, start, _) in FORMATS.items():
        if re.match(start, head, re.DOTALL):
            return demuxer
    return ""


def _refuse_foreign(head: bytes, path: Path) -> None:
    for name, (start, advice) in FOREIGN.items():
        if re.match(start, head, re.DOTALL):
            raise _refusal(path, f"be decodable, but this is {name}; {advice}")


def _fault(source: Source, error: Exception) -> str:
    """Return why a file could not be decoded, and what to do."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:100]
    if not source.head and not source.shown:
        return "is empty; fetch it again, or remove it"
    if not source.shown:
        begin = source.head[:12]
        return f"begins with {begin!r}, as no format read here does; {CONVERT}, or remove it"
    fault = f"this {FORMATS[source.demuxer][0]} file is damaged or cut off ({reason})"
    return f"{fault}; fetch it again, or, if it plays to its end, {CONVERT}"


def _check_size(stream: BinaryIO, demuxer: str, path: Path) -> None:
    most, size = MAX_MIB.get(demuxer, MAX_MIB_PLAIN), os.fstat(stream.fileno()).st_size
    if size > most << 20:
        rule = f"have at most {most:,} MiB, but has {size:,} bytes"
        raise _refusal(path, f"{rule}; split it, or save its sound alone")


def _check_chunks(stream: BinaryIO, demuxer: str, path: Path) -> None:
    """Raise UserError for a file of more chunks than any has: FFmpeg would look at each of them."""
    total = os.fstat(stream.fileno()).st_size
    chunks = [*_chunks(stream, demuxer, total)]
    if len(chunks) < MAX_CHUNKS:
        return
    _, size, start = chunks[-1]
    is_padded = any(kind == SOUND_CHUNK[demuxer] for kind, *_ in chunks)
    if not is_padded or total - start - size > PADDING_BYTES:
        fault = f"but this {FORMATS[demuxer][0]} file has more than {MAX_CHUNKS:,} chunks"
        raise _refusal(path, f"be whole, {fault}; export it again, or remove it")


def _is_streamed(stream: BinaryIO, demuxer: str, path: Path) -> bool:
    """Return whether a WAV or CAF file does not know its length, as one that was written to a pipe.

    The size of its data is then 0, -1, or within 64 KiB of 2 or 4 GiB and more than there is.
    Raises UserError where another size is more than there is, and where there is no sample.
    """
    total = os.fstat(stream.fileno()).st_size  # a seek to the end would empty the buffer
    long_size = 0
    for kind, size, start in _chunks(stream, demuxer, total):
        if kind == b"ds64":  # the sizes of a wav that may have more than 4 GiB
            long_size = struct.unpack("<8xQ", stream.read(16).ljust(16, b"\0"))[0]
        if kind == b"data":
            size = long_size if size == 2**32 - 1 and long_size else size
            if size == 0 and _ends_in_chunks(stream, demuxer, total, start):
                raise _refusal(path, NO_SAMPLE)
            if size > 0 and start + size > total and size >> 16 not in UNKNOWN:
                raise _refusal(path, CUT.format(FORMATS[demuxer][0]))
            return size <= 0 or start + size > total
    return False


def _ends_in_chunks(stream: BinaryIO, demuxer: str, total: int, position: int) -> bool:
    """Return whether nothing but chunks follows a position."""
    end = position
    for kind, size, start in _chunks(stream, demuxer, total, position):
        if not re.fullmatch(rb"[ -~]{4}", kind):
            return False
        end = start + size
    return total - 1 <= end <= total + 1  # the last may be padded, or lack its padding


def _chunks(
    stream: BinaryIO,
    demuxer: str,
    total: int,
    position: int = 0,
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, size, start) of the chunks of a WAV, AIFF or CAF file, from a position on."""
    stream.seek(0)
    big = stream.read(4) in (b"RIFX", b"FORM", b"caff")
    position = position or (8 if demuxer == "caf" else 12)
    layout = struct.Struct(">4sq" if demuxer == "caf" else ">4sI" if big else "<4sI")
    for _ in range(MAX_CHUNKS):
        if position + layout.size > total:
            return
        stream.seek(position)
        kind, size = layout.unpack(stream.read(layout.size))
        yield kind, size, position + layout.size
        if size < 0:  # to the file's end
            return
        position += layout.size + size + (size % 2 if demuxer != "caf" else 0)


def _read(source: Source) -> tuple[np.ndarray, int]:
    """Return a recording at 16 kHz, and the rate that it had."""
    if fault := _ogg_fault(source.path) if source.demuxer == "ogg" else "":
        advice = f"fetch it again, or, if it plays to its end, {CONVERT}"
        raise _refusal(source.path, f"be whole, but {fault}; {advice}")
    heard = Heard()
    waveform = np.concatenate([*_resampled(source, heard)])
    if heard.cancel():
        each = (np.concatenate([*_resampled(source, heard, n)]) for n in range(heard.count))
        waveform = max(each, key=lambda channel: float(np.dot(channel, channel)))
    return waveform, heard.rate


def _resampled(source: Source, heard: Heard, channel: int | None = None) -> Iterator[np.ndarray]:
    """Yield the mean of the channels, or one of them, at 16 kHz, piece by piece."""
    path, options = source.path, OPENING.get(source.demuxer, {})
    if source.demuxer == "wav" and source.streamed:
        options = {**options, "ignore_length": "1"}
    with av.open(f"file:{path}", "r", format=source.demuxer, options=options) as container:
        track = next(iter(container.streams.audio), None)
        if track is None or track.codec_context is None:
            fault = "but holds none"
            raise _refusal(path, f"hold sound of a known codec, {fault}; {CONVERT}, or remove it")
        track.codec_context.options = STRICT
        if (declared := _declared(container, track, source)) > MAX_SECONDS + 1:
            raise _refusal(
                path, f"last at most {MAX_SECONDS} s, but declares {declared:,.0f}; split it"
            )
        resampler, count, rate = None, 0, 0
        for samples, now in _decoded(container, track, source):
            if rate not in (0, now):
                change = f"changes from {rate} to {now} Hz"
                raise _refusal(path, f"keep one sampling rate, but {change}; {CONVERT}")
            rate = now
            count += len(samples)
            if count > MAX_SECONDS * rate:
                raise _refusal(path, f"last at most {MAX_SECONDS} s, but lasts longer; split it")
            mono = heard.mix(samples, channel)
            if rate == SAMPLE_RATE:
                yield mono
                continue
            if not resampler:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32", "HQ")
            yield resampler.resample_chunk(mono.astype(np.float32, copy=False))
        if not count:
            raise _refusal(path, NO_SAMPLE)
        _check_length(count / rate, _declared(container, track, source), source)
        heard.rate = _recorded_rate(track, rate)
        if resampler:
            yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _recorded_rate(track: av.AudioStream, rate: int) -> int:
    """Return the rate before encoding: Opus is decoded at 48 kHz, whatever it was made of."""
    head = track.codec_context.extradata or b""
    original = int.from_bytes(head[12:16], "little") if head.startswith(b"OpusHead") else 0
    return min(original, rate) or rate


def _check_length(seconds: float, declared: float, source: Source) -> None:
    if seconds < declared - MISSING:
        file = f"this {FORMATS[source.demuxer][0]} file declares {declared:.2f} s"
        fault = f"{file} and {seconds:.2f} s can be decoded"
        raise _refusal(source.path, f"be whole, but {fault}; fetch it again, or remove it")


def _declared(container: InputContainer, track: av.AudioStream, source: Source) -> float:
    """Return the seconds that a file declares; 0 where FFmpeg would guess them from its size."""
    guessed = source.demuxer in ("aac", "amr") or source.streamed
    if guessed or (source.demuxer == "mp3" and not MP3_COUNT.search(source.head)):
        return 0.0
    if source.demuxer == "matroska":  # of the whole file; what a track has is a guess
        whole = 0 if track.duration else container.duration or 0
        return whole / av.time_base - MISSING_MATROSKA
    return float(track.duration * track.time_base) if track.duration and track.time_base else 0.0


def _decoded(
    container: InputContainer,
    track: av.AudioStream,
    source: Source,
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (float (samples,) or (samples, channels), sampling rate) as it is decoded."""
    converter, total = None, _FlacSum(track, source)
    for packet in container.demux(track):
        for frame in _frames(packet, track, source):
            total.add(frame)
            channels = frame.layout.nb_channels
            if channels > MAX_CHANNELS:
                rule = f"have at most {MAX_CHANNELS} channels"
                raise _refusal(source.path, f"{rule}, but has {channels}; mix it")
            if channels == 1 and frame.format.name in FULL_SCALE and not converter:
                full = np.float32(FULL_SCALE[frame.format.name])
                yield frame.to_ndarray()[0] / full, frame.sample_rate
                continue
            converter = converter or av.AudioResampler(format="flt")  # the number format alone
            for converted in converter.resample(frame):
                yield converted.to_ndarray().reshape(-1, channels), converted.sample_rate
    if total.is_wrong():
        raise _refusal(source.path, "be whole, but its MD5 is another; fetch it again")


def _frames(
    packet: "av.Packet[av.AudioStream]",
    track: av.AudioStream,
    source: Source,
) -> list[av.AudioFrame]:
    """Return what a packet decodes to; of a streamed file the last may end amid a sample."""
    layer3 = track.codec_context.name.startswith("mp3")
    if packet.is_corrupt and source.streamed:
        with contextlib.suppress(av.InvalidDataError):
            return packet.decode()
        return []
    if packet.is_corrupt or (layer3 and _mp3_is_cut(bytes(packet))):
        raise _refusal(source.path, CUT.format(FORMATS[source.demuxer][0]))
    return packet.decode()


def _mp3_is_cut(packet: bytes) -> bool:
    """Return whether a frame of MPEG layer III is shorter than its own header says,
    as the last of a cut file is.
    """
    if len(packet) < 4 or packet[1] >> 1 & 3 != 1:  # nothing, or another layer
        return False
    version, rate = packet[1] >> 3 & 3, MP3_RATES.get(packet[2] >> 2 & 3, 0)
    kilobits = MP3_KILOBITS[version == 3][packet[2] >> 4]
    if not rate or not kilobits:
        return False
    slots = (
        144_000 * kilobits // rate
        if version == 3
        else 72_000 * kilobits // (rate // (2 if version == 2 else 4))
    )
    return len(packet) < slots + (packet[2] >> 1 & 1)


def _ogg_fault(path: Path) -> str:
    """Return why an Ogg file is not whole, or nothing: each page carries a checksum, and the last
    one a mark. FFmpeg passes over a page whose checksum is wrong.
    """
    is_last = False
    with path.open("rb") as stream:
        while (head := stream.read(27))[:4] == b"OggS":
            lengths = stream.read(head[26] if len(head) == 27 else 0)
            page = head + lengths + stream.read(sum(lengths))
            if len(head) < 27 or len(page) < 27 + head[26] + sum(lengths):
                return "its last page is cut off"
            if _ogg_sum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
                return "the checksum of a page is wrong"
            is_last = bool(page[5] & 4)
    return "" if is_last else "its last page is missing"


def _ogg_sum(page: bytes) -> int:
    """Return an Ogg page's checksum: zlib's, but bits the other way, from 0, not inverted."""
    mirrored = zlib.crc32(page.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


class _FlacSum:
    """The MD5 over all samples that a FLAC file declares; nothing where it declares none."""

    def __init__(self, track: av.AudioStream, source: Source) -> None:
        head = track.codec_context.extradata or b""
        is_flac = source.demuxer == "flac" and len(head) >= 34
        self._declared = head[18:34] if is_flac else bytes(16)
        self._bits = (head[12] & 1) * 16 + (head[13] >> 4) + 1 if is_flac else 0
        self._found = hashlib.md5(usedforsecurity=False)

    def add(self, frame: av.AudioFrame) -> None:
        """Add the samples of a frame, of `bits` bits each, as they are stored."""
        if not any(self._declared):
            return
        samples: np.ndarray = frame.to_ndarray()
        if frame.format.is_planar:
            samples = samples.T
        size = samples.dtype.itemsize
        shifted = np.right_shift(np.ascontiguousarray(samples), 8 * size - self._bits)
        stored = shifted.view(np.uint8).reshape(-1, size)[:, : -(-self._bits // 8)]
        self._found.update(np.ascontiguousarray(stored).data)

    def is_wrong(self) -> bool:
        """Tell whether other samples were decoded than were encoded."""
        return any(self._declared) and self._found.digest() != self._declared
