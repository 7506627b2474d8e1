"""A recording in every sound format that the program reads."""

from pathlib import Path

import av
import numpy as np
import soundfile

from speaker.sources.demo import draw_voice, synthesize

RATE = 16_000
SEALED = ("flac", "ogg", "opus")  # formats with a checksum over the sound itself
BY_SOUNDFILE = {  # by ending: format and subtype
    "wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"),
    "caf": ("CAF", "PCM_16"), "au": ("AU", "PCM_16"), "sph": ("NIST", "PCM_16"),
}  # fmt: skip
BY_FFMPEG = {  # by ending: format, codec, and the rate that it knows
    "m4a": ("ipod", "aac", RATE), "aac": ("adts", "aac", RATE),
    "webm": ("webm", "libopus", 48_000), "mka": ("matroska", "flac", RATE),
    "3gp": ("3gp", "libopencore_amrnb", 8_000), "amr": ("amr", "libopencore_amrnb", 8_000),
}  # fmt: skip
ENDINGS = (*BY_SOUNDFILE, *BY_FFMPEG)


def write_sounds(folder: Path) -> None:
    """Write one voice into files a.wav, a.flac and so on."""
    folder.mkdir()
    voice = synthesize(draw_voice("fuzz"), "fuzz").numpy()
    for ending, (form, subtype) in BY_SOUNDFILE.items():
        soundfile.write(folder / f"a.{ending}", voice, RATE, subtype, format=form)
    for ending, (form, codec, rate) in BY_FFMPEG.items():
        _encode(folder / f"a.{ending}", voice, form, codec, rate)


def _encode(path: Path, voice: np.ndarray, form: str, codec: str, rate: int) -> None:
    frame = av.AudioFrame.from_ndarray(voice.reshape(1, -1), format="flt", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        converter = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for each in (*converter.resample(frame), *converter.resample(None)):
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
