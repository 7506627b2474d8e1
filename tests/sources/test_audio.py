"""Decoding, on files written by another library, by FFmpeg's own encoders, and by hand."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch

from speaker.common.errors import UserError
from speaker.sources import audio
from speaker.sources.audio import DEMUXERS, FORMATS, MAX_SECONDS, read_audio, read_sound
from tests.sounds import BY_FFMPEG, BY_SOUNDFILE, VOICE, Pipe, encode, write

EXACT = (".wav", ".flac", ".aiff", ".aif", ".caf", ".au", ".sph", ".mka")
RATES = {".webm": 48_000, ".amr": 8_000, ".3gp": 8_000}  # 16 kHz else
WITHOUT_LENGTH = (".aac", ".amr")  # such a file may end after any frame


def alike(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the correlation of two waveforms that a codec may have shifted."""
    end = min(len(ours), len(theirs)) - 2_100
    shifted = (np.corrcoef(ours[k : k + end], theirs[:end])[0, 1] for k in range(2_100))
    return float(max(map(abs, shifted)))


@pytest.mark.parametrize("ending", [*BY_SOUNDFILE, *BY_FFMPEG, ".WAV"])
def test_reads_what_was_written(tmp_path: Path, ending: str) -> None:
    sound = read_sound(write(tmp_path / f"a{ending}"))
    waveform = sound.waveform.numpy()
    assert waveform.dtype == (np.float64 if ending == ".aif" else np.float32)
    assert abs(len(waveform) - len(VOICE)) < 2_100  # codecs in frames add up to two
    assert sound.rate == RATES.get(ending, 16_000)
    assert not sound.misnamed
    if ending.lower() in EXACT:
        assert np.abs(waveform - VOICE).max() < 4e-5
    elif ending in (".amr", ".3gp"):  # which keeps no phase
        assert 0.5 < waveform.std() / VOICE.std() < 1.5
    else:
        assert alike(waveform, VOICE) > 0.95


def test_every_ending_is_tried_here() -> None:
    same = {".wave", ".spx", ".m4b", ".aifc", ".snd", ".nist"}  # as another ending of their format
    endings = {ending for _, _, endings in FORMATS.values() for ending in endings}
    assert endings - same == {*BY_SOUNDFILE, *BY_FFMPEG}


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


@pytest.mark.parametrize(
    "waveform", [np.zeros(16_000), np.clip(20 * VOICE, -1, 1), np.full(1, 0.5)]
)
def test_silence_clipping_and_one_sample_are_sound(tmp_path: Path, waveform: np.ndarray) -> None:
    assert len(read_audio(write(tmp_path / "a.wav", waveform))) == len(waveform)


@pytest.mark.parametrize("ending", sorted({*BY_SOUNDFILE, *BY_FFMPEG} - {*WITHOUT_LENGTH}))
def test_a_recording_cut_anywhere_is_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}")
    data = path.read_bytes()
    last = 0.9 if ending in (".mka", ".webm") else 0.97  # these declare 0.1 s too much
    for share in np.linspace(0, last, 60):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError) as caught:
            read_audio(path)
        assert str(caught.value).startswith(f"{path}: a recording must ")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("ending", WITHOUT_LENGTH)
def test_what_has_no_length_is_refused_where_a_frame_is_cut(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}")
    data = path.read_bytes()
    with av.open(str(path)) as container:
        starts = {packet.pos or 0 for packet in container.demux() if packet.size}
    assert len(starts) > 25
    header = 8 if ending == ".aac" else 1  # a part of the next one tells nothing
    whole = {start + more for start in starts for more in range(header)}
    for cut in range(len(data) // 2, len(data) - 1, 31):
        if cut not in whole:
            path.write_bytes(data[:cut])
            with pytest.raises(UserError, match="cut off|decodable"):
                read_audio(path)


def test_an_mp3_without_a_length_is_refused_when_its_last_frame_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3")
    data = path.read_bytes()
    second = data.index(data[:2], 4)  # the first frame holds the length, and no sound
    assert b"Info" in data[:second] or b"Xing" in data[:second]
    path.write_bytes(data[second:])
    whole = len(read_audio(path))
    assert abs(whole - len(VOICE)) < 3_000
    ends = [
        place
        for place in range(second, len(data))
        if data[place : place + 2] == data[second : second + 2]
    ]
    for cut in range(len(data) // 2, len(data) - 1, 31):
        path.write_bytes(data[second:cut])
        if cut not in ends:
            with pytest.raises(UserError, match="cut off|decodable"):
                read_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_samples_beyond_all_bounds_raise_no_warning(tmp_path: Path, value: float) -> None:
    stereo = np.full((16_000, 2), value, np.float32)
    soundfile.write(tmp_path / "a.wav", stereo, 16_000, "FLOAT")
    with pytest.raises(UserError, match="must hold finite samples"):
        read_audio(tmp_path / "a.wav")


def special(value: float) -> Callable[[Path], object]:
    return lambda path: soundfile.write(
        path, np.where(np.arange(VOICE.size) == 99, value, VOICE), 16_000, "FLOAT"
    )


@pytest.mark.parametrize(
    ("name", "make", "rule"),
    [
        ("a.wav", Path.touch, "decodable"),
        ("a.wav", lambda path: path.write_text("no sound\n" * 999), "decodable"),
        ("a.m4a", lambda path: path.write_text("no sound\n" * 999), "decodable"),
        ("a.mp3", lambda path: path.write_bytes(bytes(99_999)), "decodable"),
        ("a.flac", lambda path: path.write_bytes(bytes(99_999)), "hold sound|decodable"),
        ("a.ogg", lambda path: path.write_bytes(b"OggS" * 999), "whole|decodable"),
        (
            "a.wav",
            lambda path: path.write_text(f"#EXTM3U\n#EXTINF:1,\n{path.parent}/b.wav\n"),
            "decodable",
        ),
        (
            "a.mp3",
            lambda path: path.write_text(f"ffconcat version 1.0\nfile {path.parent}/b.wav\n"),
            "decodable",
        ),
        ("a.m4a", lambda path: path.write_bytes(b"PK\x03\x04" * 99), "a zip archive; unpack it"),
        ("a.wav", lambda path: path.write_text("<html>404"), "a web page; fetch the recording"),
        ("a.flac", lambda path: path.write_text("version https://git-lfs"), "run git lfs pull"),
        ("a.opus", lambda path: path.write_bytes(b"wvpk" * 99), "is WavPack; convert it to wav or"),
        ("a.wav", lambda path: path.write_text("no sound"), "begins with b'no sound', as no"),
        ("a.wav", Path.touch, "is empty; fetch it again"),
        (
            "a.wav",
            lambda path: soundfile.write(path, np.zeros((9, 65)), 16_000),
            "at most 64 channels",
        ),
        ("a.wav", lambda path: soundfile.write(path, np.zeros(0), 16_000), "decodable|hold sound"),
        (
            "a.flac",
            lambda path: soundfile.write(path, np.zeros(8_000 * MAX_SECONDS + 8_000), 8_000),
            "at most 600 s",
        ),
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
def test_what_is_no_recording_is_refused(
    tmp_path: Path, name: str, make: Callable[[Path], object], rule: str
) -> None:
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


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize(
    ("ending", "form", "codec", "error"),
    [
        (".wav", "wav", "pcm_u8", 8e-3),
        (".wav", "wav", "pcm_s16le", 1e-4),
        (".wav", "wav", "pcm_s24le", 1e-6),
        (".wav", "wav", "pcm_s32le", 1e-6),
        (".wav", "wav", "pcm_s64le", 1e-6),
        (".wav", "wav", "pcm_f32le", 1e-6),
        (".wav", "wav", "pcm_f64le", 1e-6),
        (".wav", "wav", "pcm_mulaw", 3e-2),
        (".flac", "flac", "flac", 1e-4),
        (".aiff", "aiff", "pcm_s8", 8e-3),
        (".aiff", "aiff", "pcm_s24be", 1e-6),
        (".m4a", "ipod", "alac", 1e-4),
    ],
)  # fmt: skip
def test_reads_samples_of_any_kind(
    tmp_path: Path, ending: str, form: str, codec: str, error: float, rate: int, channels: int
) -> None:
    at_rate = soxr.resample(VOICE, 16_000, rate)
    waveform = at_rate if channels == 1 else np.stack([at_rate, at_rate / 2], 1)
    encode(str(tmp_path / f"a{ending}"), form, codec, waveform, rate)
    sound = read_sound(tmp_path / f"a{ending}")
    mono = at_rate if channels == 1 else at_rate * np.float32(0.75)
    expected = mono if rate == 16_000 else soxr.resample(mono, rate, 16_000)
    assert sound.rate == rate
    assert np.abs(sound.waveform.numpy() - expected).max() < error


@pytest.mark.parametrize(
    ("form", "codec", "name"),
    [("flac", "flac", "a.flac"), ("ipod", "alac", "a.m4a")],
)
def test_reads_24_bits_of_lossless_codecs(
    tmp_path: Path,
    form: str,
    codec: str,
    name: str,
) -> None:
    with av.open(str(tmp_path / name), "w", format=form) as container:
        stream = container.add_stream(codec, rate=22_050, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.format = av.AudioFormat("s32" if codec == "flac" else "s32p")
        whole = np.round(VOICE * 2**23).astype(np.int32) * 256
        frame = av.AudioFrame.from_ndarray(whole[None], format=stream.format.name, layout="mono")
        frame.sample_rate = 22_050
        container.mux([*stream.encode(frame), *stream.encode(None)])
    expected = soxr.resample(VOICE, 22_050, 16_000)
    assert np.abs(read_audio(tmp_path / name).numpy() - expected).max() < 1e-6


def wav(
    size: int,
    riff: int = 0,
    samples: bytes = b"",
    big: bool = False,
    before: bytes = b"",
) -> bytes:
    """Return a wav of 16 bits at 16 kHz whose header says what it likes."""
    order = ">" if big else "<"
    head = struct.pack(f"{order}4sI4s", b"RIFX" if big else b"RIFF", riff, b"WAVE")
    kind = struct.pack(f"{order}4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    return head + kind + before + struct.pack(f"{order}4sI", b"data", size) + samples


SAMPLES = np.round(VOICE * 2**15).astype("<i2").tobytes()
NOTE = struct.pack("<4sI4s", b"LIST", 4, b"INFO")


@pytest.mark.parametrize(
    "size",
    [0, 2**32 - 1, 2**31 - 1, 2**31, 0x7FFFF000, 0x7FFFEFFC, 2**32 - 37],
)
@pytest.mark.parametrize("riff", [0, 2**32 - 1, 0x7FFFF024, 999])
@pytest.mark.parametrize("tail", [b"", b"\0"])
def test_a_wav_that_does_not_know_its_length_is_read_to_its_end(
    tmp_path: Path, size: int, riff: int, tail: bytes
) -> None:
    path = tmp_path / "a.wav"
    swapped = np.frombuffer(SAMPLES, "<i2").astype(">i2").tobytes()
    for big, samples in ((False, SAMPLES), (True, swapped)):
        before = b"" if big else NOTE
        path.write_bytes(wav(len(samples), 0, samples, big, before))
        whole = read_audio(path)
        path.write_bytes(wav(size, riff, samples + tail, big, before))
        assert torch.equal(read_audio(path), whole)
    assert len(whole) == len(VOICE)


@pytest.mark.parametrize("long_size", [0, len(SAMPLES)])
def test_a_long_wav_that_does_not_know_its_length(tmp_path: Path, long_size: int) -> None:
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, 0, long_size, 0, 0)
    head, rest = wav(2**32 - 1, 2**32 - 1, SAMPLES)[:12], wav(2**32 - 1, 0, SAMPLES)[12:]
    (tmp_path / "a.wav").write_bytes(head.replace(b"RIFF", b"RF64") + sizes + rest)
    assert len(read_audio(tmp_path / "a.wav")) == len(VOICE)


@pytest.mark.parametrize(
    ("name", "form", "codec"),
    [
        ("a.wav", "wav", "pcm_s16le"), ("b.wav", "wav", "pcm_s24le"), ("c.wav", "wav", "adpcm_ms"),
        ("a.caf", "caf", "pcm_s16le"), ("a.au", "au", "pcm_s16be"), ("a.flac", "flac", "flac"),
        ("a.ogg", "ogg", "flac"), ("a.mp3", "mp3", "libmp3lame"), ("a.m4a", "mp4", "aac"),
        ("a.aac", "adts", "aac"), ("a.mka", "matroska", "flac"),
        ("b.mka", "matroska", "libmp3lame"),
    ],
)  # fmt: skip
def test_what_ffmpeg_writes_to_a_pipe_is_read_to_its_end(
    tmp_path: Path,
    name: str,
    form: str,
    codec: str,
) -> None:
    pipe = Pipe()
    encode(pipe, form, codec)
    (tmp_path / name).write_bytes(pipe.written)
    waveform = read_audio(tmp_path / name).numpy()
    assert len(VOICE) - 1 <= len(waveform) < len(VOICE) + 2_100
    assert alike(waveform, VOICE) > 0.95


def test_an_mp3_of_changing_bit_rate_without_a_length_is_read(tmp_path: Path) -> None:
    loud = np.random.default_rng(0).uniform(-0.9, 0.9, 48_000)
    pipe = Pipe()
    quality: Any = {"flags": "+qscale", "global_quality": "472"}
    encode(pipe, "mp3", "libmp3lame", np.concatenate([VOICE / 1_000, loud]), **quality)
    (tmp_path / "a.mp3").write_bytes(pipe.written)
    assert abs(len(read_audio(tmp_path / "a.mp3")) - len(VOICE) - 48_000) < 3_000


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (wav(len(SAMPLES) + 2, 0, SAMPLES), "whole, but this WAV file is cut off"),
        # Where a packet ends.
        (wav(len(SAMPLES), 0, SAMPLES[:4_096]), "whole, but this WAV file is cut off"),
        (wav(100_000_000, 0, SAMPLES), "whole, but this WAV file is cut off"),
        (wav(0), "holds no sample; remove it"),
        (wav(0, 0, NOTE), "holds no sample; remove it"),
        (wav(0, 0, before=bytes(8) * 200_000), "has more than 1,000 chunks"),
    ],
)
def test_a_wav_that_is_cut_or_empty_is_refused(tmp_path: Path, data: bytes, rule: str) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(UserError, match=rule) as caught:
        read_audio(tmp_path / "a.wav")
    assert ("fetch" in str(caught.value)) == ("cut off" in str(caught.value))


def test_a_caf_of_unreasonable_sizes_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.caf").read_bytes()
    place = data.index(b"data")
    for kind in (b"data", b"free"):
        spoilt = data[:place] + struct.pack(">4sq", kind, 2**63 - 1) + data[place + 12 :]
        (tmp_path / "a.caf").write_bytes(spoilt)
        with pytest.raises(UserError, match="a recording must"):
            read_audio(tmp_path / "a.caf")


@pytest.mark.parametrize("wrong", [".wav", ".mp3", ".m4a", ".flac", ".opus"])
@pytest.mark.parametrize("ending", [*BY_SOUNDFILE, *BY_FFMPEG])
def test_a_recording_under_another_formats_name_is_read(
    tmp_path: Path,
    ending: str,
    wrong: str,
) -> None:
    path = write(tmp_path / f"a{ending}")
    right = read_sound(path)
    other = read_sound(path.rename(tmp_path / f"b{wrong}"))
    assert torch.equal(other.waveform, right.waveform)
    assert other.format == right.format
    (endings,) = (endings for name, _, endings in FORMATS.values() if name == right.format)
    assert other.misnamed == (wrong not in endings)


def test_an_mp3_in_the_clothes_of_a_wav_may_have_either_name(tmp_path: Path) -> None:
    encode(str(tmp_path / "a.wav"), "wav", "libmp3lame")
    (tmp_path / "a.mp3").write_bytes((tmp_path / "a.wav").read_bytes())
    for name in ("a.wav", "a.mp3"):
        sound = read_sound(tmp_path / name)
        assert not sound.misnamed
        assert alike(sound.waveform.numpy(), VOICE) > 0.95


@pytest.mark.parametrize(("form", "ending"), [("ogg", ".opus"), ("webm", ".webm")])
def test_opus_says_at_which_rate_it_was_recorded(tmp_path: Path, form: str, ending: str) -> None:
    telephone = soxr.resample(VOICE, 16_000, 8_000)
    encode(str(tmp_path / f"a{ending}"), form, "libopus", telephone, 8_000)
    sound = read_sound(tmp_path / f"a{ending}")
    assert sound.rate == 8_000
    assert abs(len(sound.waveform) - len(VOICE)) < 2_100  # decoded at 48 kHz all the same


def test_a_flac_with_the_tag_of_an_mp3_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac")
    path.write_bytes(b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + path.read_bytes())
    assert read_sound(path).format == "FLAC"


@pytest.mark.parametrize("ending", DEMUXERS)
@pytest.mark.parametrize("junk", ["", "\n"])
def test_no_name_makes_a_playlist_lead_to_another_file(
    tmp_path: Path,
    ending: str,
    junk: str,
) -> None:
    other = write(tmp_path / "b.wav")
    lists = (
        "#EXTM3U\n#EXTINF:1,\n{}\n",
        "ffconcat version 1.0\nfile {}\n",
        "[playlist]\nFile1={}\n",
    )
    for text in lists:
        path = tmp_path / f"a{ending}"
        path.write_text(junk + text.format(other))
        rule = "must" if junk else "be decodable, but this is a playlist; put the recording itself"
        with pytest.raises(UserError, match=rule):
            read_audio(path)


@pytest.mark.parametrize("ending", [".wav", ".flac", ".opus", ".mp3", ".m4a"])
@pytest.mark.parametrize("gain", [1.0, 0.95])
def test_channels_in_opposite_phase_are_heard(tmp_path: Path, ending: str, gain: float) -> None:
    stereo = np.stack([VOICE, -gain * VOICE], 1)
    if ending == ".m4a":
        encode(str(tmp_path / "a.m4a"), "ipod", "aac", stereo)
    else:
        write(tmp_path / f"a{ending}", stereo)
    waveform = read_audio(tmp_path / f"a{ending}").numpy()
    assert alike(waveform, VOICE) > 0.95
    assert 0.8 < np.abs(waveform).max() / np.abs(VOICE).max() < 1.2


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_that_do_not_cancel_are_mixed(tmp_path: Path, rate: int) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 44_100))
    left = noise[0]
    for right in (noise[1], 0 * left, -0.5 * left):
        soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), rate, subtype="FLOAT")
        expected = soxr.resample(((left + right) / 2).astype(np.float32), rate, 16_000)
        assert np.allclose(read_audio(tmp_path / "a.wav"), expected, atol=1e-6)
    many = np.zeros((44_100, 64))
    many[:, 7] = noise[0]
    soundfile.write(tmp_path / "b.wav", many, 16_000, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "b.wav"), noise[0] / 64, atol=1e-6)


@pytest.mark.parametrize("ending", [".wav", ".aiff"])
def test_zeros_in_the_place_of_chunks_are_not_sought_through(tmp_path: Path, ending: str) -> None:
    """As a download leaves them that reserved its space: at 3 GB FFmpeg took minutes."""
    path = write(tmp_path / f"a{ending}")
    head = path.read_bytes()[:12]
    path.write_bytes(head)
    os.truncate(path, 1 << 30)
    with pytest.raises(UserError, match="file has more than 1,000 chunks; export it"):
        read_audio(path)


@pytest.mark.parametrize("ending", [".wav", ".caf"])
def test_zeros_behind_the_sound_are_not_sought_through(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}")
    sound = read_audio(path)
    os.truncate(path, 1 << 30)
    with pytest.raises(UserError, match=f"{ending[1:].upper()} file has more than 1,000 chunks"):
        read_audio(path)
    if ending == ".wav":
        os.truncate(path, 1 << 20)  # what some programs leave
        assert torch.equal(read_audio(path), sound)


@pytest.mark.parametrize(("ending", "most"), [(".mp3", 128), (".flac", 256), (".wav", 1_024)])
def test_more_than_ten_minutes_can_take_is_not_read(tmp_path: Path, ending: str, most: int) -> None:
    path = write(tmp_path / f"a{ending}")
    os.truncate(path, (most << 20) + 1)
    with pytest.raises(UserError, match=f"have at most {most:,} MiB, but has {(most << 20) + 1:,}"):
        read_audio(path)


def test_a_declared_length_beyond_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.wav", rate=1)
    os.truncate(path, 1_500)
    path.write_bytes(path.read_bytes()[:40] + struct.pack("<I", 1_456) + path.read_bytes()[44:])
    monkeypatch.setattr(audio, "_decoded", None)
    with pytest.raises(UserError, match="last at most 600 s, but declares 728; split it"):
        read_audio(path)


@pytest.mark.parametrize("ending", [".ogg", ".opus"])
def test_a_flipped_bit_in_an_ogg_is_noticed(tmp_path: Path, ending: str) -> None:
    """FFmpeg passes over a page whose checksum is wrong."""
    path = write(tmp_path / f"a{ending}")
    whole = path.read_bytes()
    for place in range(100, len(whole), len(whole) // 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="be whole|decodable"):
            read_audio(path)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_of_other_samples_than_its_md5_says_is_refused(
    tmp_path: Path, subtype: str, channels: int
) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([VOICE] * channels, 1), 16_000, subtype)
    read_audio(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:26] + bytes([whole[26] ^ 1]) + whole[27:])  # within the MD5
    with pytest.raises(UserError, match="be whole, but its MD5 is another; fetch it again"):
        read_audio(path)
    path.write_bytes(whole[:26] + bytes(16) + whole[42:])  # an encoder need not know it
    read_audio(path)
