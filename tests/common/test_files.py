import os
import resource
from pathlib import Path

import pytest

from speaker.common.files import read_bounded
from tests.helpers import refused


def test_what_is_no_file_is_refused_and_leaves_no_handle_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = os.listdir("/proc/self/fd")
    assert "must be a regular file" in refused(lambda: read_bounded(tmp_path / "pipe", 9))
    assert "Is a directory" in refused(lambda: read_bounded(tmp_path / "folder", 9))
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_does_not_fit_into_memory_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    os.truncate(tmp_path / "f", 1 << 30)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        said = refused(lambda: read_bounded(tmp_path / "f", 1 << 31, "delete it"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "must fit into memory, but its 1,073,741,824 bytes do not; free some, or delete" in said


def test_a_small_file_takes_little_memory_however_large_the_bound(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(30_000))
    assert read_bounded(tmp_path / "f", 1 << 60) == bytes(30_000)


@pytest.mark.parametrize("size", [0, 9])
def test_a_file_within_the_bound_is_read(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(bytes(size))
    assert read_bounded(tmp_path / "f", 9) == bytes(size)
