"""A recording in every sound format that the program reads."""

from pathlib import Path

from tests.sounds import BY_FFMPEG, BY_SOUNDFILE, write

SEALED = ("flac", "ogg", "oga", "opus")  # formats with a checksum over the sound itself
ENDINGS = tuple(ending.removeprefix(".") for ending in (*BY_SOUNDFILE, *BY_FFMPEG))


def write_sounds(folder: Path) -> None:
    """Write one voice into files a.wav, a.flac and so on."""
    folder.mkdir()
    for ending in ENDINGS:
        write(folder / f"a.{ending}")
