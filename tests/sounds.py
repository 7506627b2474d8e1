"""Recordings in every sound format that the program reads, by other libraries' encoders."""

from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from speaker.sources.demo import draw_voice, synthesize

VOICE = synthesize(draw_voice("audio"), "audio").numpy()
BY_SOUNDFILE = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".aif": ("AIFF", "PCM_24"),
    ".caf": ("CAF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".sph": ("NIST", "PCM_16"),
}
BY_FFMPEG = {  # format, codec, the rate that it asks for
    ".m4a": ("ipod", "aac", 0),
    ".mp4": ("mp4", "aac", 0),
    ".aac": ("adts", "aac", 0),
    ".mka": ("matroska", "flac", 0),
    ".webm": ("webm", "libopus", 48_000),
    ".amr": ("amr", "libopencore_amrnb", 8_000),
    ".3gp": ("3gp", "libopencore_amrnb", 8_000),
}


class Pipe:
    """What FFmpeg cannot go back in to fill in the lengths."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> int:
        self.written += data
        return len(data)


def encode(
    target: object,
    form: str,
    codec: str,
    waveform: np.ndarray = VOICE,
    rate: int = 16_000,
    **options: str,
) -> None:
    """Encode a waveform (samples,) or (samples, 2), at a rate that the codec knows."""
    layout = "mono" if waveform.ndim == 1 else "stereo"
    muxing = {"movflags": "frag_keyframe+empty_moov"} if isinstance(target, Pipe) else {}
    with av.open(target, "w", format=form, options=muxing) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        assert isinstance(stream, av.AudioStream)
        packed = np.ascontiguousarray(waveform, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        converter = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        for each in converter.resample(frame):
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))


def write(path: Path, waveform: np.ndarray = VOICE, rate: int = 16_000) -> Path:
    """Write a waveform (samples,) or (samples, channels) in the format that the name asks for."""
    ending = path.suffix.lower()
    if ending in BY_SOUNDFILE:
        form, subtype = BY_SOUNDFILE[ending]
        soundfile.write(path, waveform, rate, format=form, subtype=subtype)
        return path
    form, codec, asked = BY_FFMPEG[ending]
    if asked:
        waveform, rate = soxr.resample(waveform, rate, asked), asked
    encode(str(path), form, codec, waveform, rate)
    return path
