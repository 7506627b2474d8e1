"""Decoding, on files written by another library, by FFmpeg's own AAC encoder, and by hand."""

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from speaker.common.errors import UserError
from speaker.sources.audio import LONGEST, read_audio
from speaker.sources.demo import draw_voice, synthesize

VOICE = synthesize(draw_voice("audio"), "audio").numpy()
FORMATS = {".wav": {}, ".flac": {}, ".ogg": {"subtype": "VORBIS"}, ".mp3": {"subtype": "MPEG_LAYER_III"}}


def write(path: Path, waveform: np.ndarray = VOICE, rate: int = 16_000) -> Path:
    """Write a waveform (samples,) or (samples, channels) in the format that the name asks for."""
    if path.suffix.lower() != ".m4a":
        soundfile.write(path, waveform, rate, **FORMATS[path.suffix.lower()])
        return path
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3", ".m4a", ".WAV"])
def test_reads_what_was_written(tmp_path: Path, ending: str) -> None:
    waveform = read_audio(write(tmp_path / f"a{ending}")).numpy()
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - len(VOICE)) < 2_100  # codecs in frames add up to two
    tolerance = 4e-5 if ending.lower() in (".wav", ".flac") else 0.5
    shifts = range(1_100 if tolerance == 0.5 else 1)
    end = min(len(waveform), len(VOICE)) - 1_100
    best = max(shifts, key=lambda shift: float(np.dot(waveform[shift : shift + end], VOICE[:end])))
    assert np.abs(waveform[best : best + end] - VOICE[:end]).max() < tolerance
    assert np.corrcoef(waveform[best : best + end], VOICE[:end])[0, 1] > 0.95


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 9, 64])
def test_channels_count_alike(tmp_path: Path, channels: int) -> None:
    waveform = np.random.default_rng(0).uniform(-1, 1, (4_000, channels))
    soundfile.write(tmp_path / "a.wav", waveform, 16_000, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav"), waveform.mean(1), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 192_000])
def test_any_rate_becomes_16_khz(tmp_path: Path, rate: int) -> None:
    seconds = np.arange(rate) / rate
    waveform = read_audio(write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * seconds), rate))
    assert abs(len(waveform) - 16_000) <= 1
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(len(waveform)) / 16_000)
    assert (waveform - expected)[200:-200].abs().max() < 1e-3


@pytest.mark.parametrize("waveform", [np.zeros(16_000), np.clip(20 * VOICE, -1, 1), np.full(1, 0.5)])
def test_silence_clipping_and_one_sample_are_sound(tmp_path: Path, waveform: np.ndarray) -> None:
    assert len(read_audio(write(tmp_path / "a.wav", waveform))) == len(waveform)


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3", ".m4a"])
def test_a_recording_cut_anywhere_is_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}")
    data = path.read_bytes()
    for share in np.linspace(0, 0.97, 60):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError) as caught:
            read_audio(path)
        assert str(caught.value).startswith(f"{path}: a recording must ")
        assert str(caught.value).isprintable()


def test_an_mp3_without_a_length_is_refused_when_its_last_frame_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3")
    data = path.read_bytes()
    second = data.index(data[:2], 4)  # the first frame holds the length, and no sound
    assert b"Info" in data[:second] or b"Xing" in data[:second]
    path.write_bytes(data[second:])
    whole = len(read_audio(path))
    assert abs(whole - len(VOICE)) < 3_000
    ends = [place for place in range(second, len(data)) if data[place : place + 2] == data[second : second + 2]]
    for cut in range(len(data) // 2, len(data) - 1, 31):
        path.write_bytes(data[second:cut])
        if cut not in ends:
            with pytest.raises(UserError, match="cut off|decodable"):
                read_audio(path)


def special(value: float) -> Callable[[Path], object]:
    return lambda path: soundfile.write(path, np.where(np.arange(VOICE.size) == 99, value, VOICE), 16_000, "FLOAT")


@pytest.mark.parametrize(
    ("name", "make", "rule"),
    [
        ("a.wav", Path.touch, "decodable"),
        ("a.wav", lambda path: path.write_text("no sound\n" * 999), "decodable"),
        ("a.m4a", lambda path: path.write_text("no sound\n" * 999), "decodable"),
        ("a.mp3", lambda path: path.write_bytes(bytes(99_999)), "decodable"),
        ("a.flac", lambda path: path.write_bytes(bytes(99_999)), "hold sound|decodable"),
        ("a.ogg", lambda path: path.write_bytes(b"OggS" * 999), "whole|decodable"),
        ("a.wav", lambda path: path.write_text(f"#EXTM3U\n#EXTINF:1,\n{path.parent}/b.wav\n"), "decodable"),
        ("a.mp3", lambda path: path.write_text(f"ffconcat version 1.0\nfile {path.parent}/b.wav\n"), "decodable"),
        ("a.mp3", lambda path: write(path.with_suffix(".wav")).rename(path), "decodable"),
        ("a.wav", lambda path: soundfile.write(path, np.zeros((9, 65)), 16_000), "at most 64 channels"),
        ("a.wav", lambda path: soundfile.write(path, np.zeros(0), 16_000), "decodable|hold sound"),
        ("a.flac", lambda path: soundfile.write(path, np.zeros(8_000 * LONGEST + 8_000), 8_000), "at most 600 s"),
        ("a.wav", lambda path: soundfile.write(path, np.ones(1), 192_000), "too little"),
        ("a.wav", lambda path: soundfile.write(path, np.ones(9), 2**31 - 1), "too little"),
        ("a.wav", special(np.nan), "finite"),
        ("a.wav", special(np.inf), "finite"),
        ("a.wav", os.mkfifo, "regular file"),
        ("a.wav", Path.mkdir, "regular file"),
        ("a.wav", lambda path: path.symlink_to(path.parent / "b.wav"), "regular file"),
        ("a.wav", lambda path: path.symlink_to("/dev/zero"), "regular file"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, name: str, make: Callable[[Path], object], rule: str) -> None:
    write(tmp_path / "b.wav")
    make(tmp_path / name)
    with pytest.raises(UserError, match=rule) as caught:
        read_audio(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: a recording must ")


def test_a_damaged_flac_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    for position in range(len(data) // 3, len(data) - 100, 2_000):
        data[position] ^= 1
        path.write_bytes(data)
        data[position] ^= 1
        with pytest.raises(UserError, match="must be whole|decodable"):
            read_audio(path)
