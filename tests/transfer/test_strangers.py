"""A file of a stranger is data: what is damaged, foreign, too big or leads out of its folder is refused in one line, before
any store is opened.
"""

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.tracking.names import SHA256
from experiments.transfer import archive
from experiments.transfer.archive import STUDIES, SUMS
from speaker.common.errors import UserError
from speaker.common.seeding import generator
from tests.helpers import refused
from tests.transfer.places import take_to

Members = dict[str, bytes]


@pytest.fixture
def good(there: Path) -> bytes:
    """A file of a study."""
    return (there / "s.zip").read_bytes()


def members(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def packed(contents: Members, is_summed: bool = True) -> bytes:
    """Return a file of these members, with sums that fit them unless others are wanted."""
    if is_summed:
        lines = [
            f"{hashlib.sha256(data).hexdigest()}  {name}\n"
            for name, data in contents.items()
            if name != SUMS
        ]
        contents = {**contents, SUMS: "".join(lines).encode()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in contents.items():
            opened.writestr(name, data)
    return stream.getvalue()


def assert_refused(data: bytes, tmp_path: Path, words: str = "") -> None:
    (tmp_path / "file.zip").write_bytes(data)
    assert words in refused(lambda: take_to(tmp_path / "mlruns", tmp_path / "file.zip"))
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"], "no store was opened"


def test_what_is_packed_again_is_good(good: bytes, tmp_path: Path) -> None:
    """So that what the others refuse is refused for its fault alone."""
    (tmp_path / "file.zip").write_bytes(packed(members(good)))
    assert take_to(tmp_path / "mlruns", tmp_path / "file.zip").new == ["s"]


def test_a_flipped_bit_anywhere_is_noticed(good: bytes, tmp_path: Path) -> None:
    """Or changes nothing that is read: dates of members, say."""
    contents, noticed = members(good), 0
    for place in torch.randint(len(good), (60,), generator=generator(0, "flips")).tolist():
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        (tmp_path / "file.zip").write_bytes(data)
        try:
            found = archive.Archive(tmp_path / "file.zip")
        except UserError:
            noticed += 1
            continue
        assert found.text(STUDIES) == contents[STUDIES]
        assert members(bytes(data)) == contents
    assert noticed > 50


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off(good: bytes, tmp_path: Path, share: float) -> None:
    assert_refused(good[: int(len(good) * share)], tmp_path, "copy or export it again")


ESCAPES = ("../evil.json", "/root/evil", "models/../../evil", "models/" + "a" * 32 + "/../weights.safetensors",
           "studies.json/..", "a\\..\\b", "models/" + "A" * 32 + "/config.json", "other.txt")  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_no_other_name_is_taken(good: bytes, tmp_path: Path, name: str) -> None:
    assert_refused(packed({**members(good), name: b"x"}), tmp_path)


def edited(good: bytes, edit: Callable[[Any], object]) -> bytes:
    """Return a file whose study is edited, with right sums."""
    contents = members(good)
    value = json.loads(contents[STUDIES])
    edit(value)
    return packed({**contents, STUDIES: json.dumps(value).encode()})


def first(value: Any) -> Any:
    return value["studies"][0]


FAULTS: dict[str, Callable[[Any], object]] = {
    "another format": lambda value: value.update(format=2),
    "no study": lambda value: value.update(studies=[]),
    "a field is missing": lambda value: first(value).pop("trials"),
    "a field of another type": lambda value: first(value)["parent"].update(start="now"),
    "a name that is a path": lambda value: first(value).update(name="../s"),
    "an id that is a filter": lambda value: first(value).update(identity="' or 1=1"),
    "the id of another": lambda value: first(value)["user_attrs"].update(id="f" * 32),
    "no contract": lambda value: first(value)["user_attrs"].pop("contract"),
    "the run of another study": lambda value: first(value)["parent"]["tags"].update(study="t"),
    "a run of another study": lambda value: first(value)["runs"][0]["tags"].update(study="t"),
    "two runs of a trial": lambda value: first(value)["runs"][0]["tags"].update(trial="1"),
    "two runs of one id": lambda value: first(value)["runs"][0].update(run_id=first(value)["runs"][1]["run_id"]),
    "a run of no trial": lambda value: first(value)["runs"][0]["tags"].update(trial="7"),
    "a curve with a hole": lambda value: first(value)["runs"][0]["metrics"][0].update(steps=[]),
    "a tag too long": lambda value: first(value)["runs"][0]["tags"].update(x="x" * 9_000),
    "a text that a terminal obeys": lambda value: first(value)["runs"][0]["tags"].update(point="\x1b[2J"),
    "other weights' hash": lambda value: first(value)["runs"][0]["tags"].update({SHA256: "0" * 64}),
    "an unknown state": lambda value: first(value)["trials"][0].update(state="DONE"),
    "a parameter without values": lambda value: first(value)["trials"][0]["distributions"].clear(),
    "a distribution that is none": lambda value: first(value)["trials"][0]["distributions"].update(nhead="x"),
    "a complete trial without a value": lambda value: first(value)["trials"][0].update(value=None),
    "a second study that is another": lambda value: value["studies"].append({**first(value), "name": "t"}),
    "a champion of no run": lambda value: value.update(
        versions=[{"run_id": "e" * 32, "card": "", "tags": {}, "aliases": ["champion"]}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_study(good: bytes, tmp_path: Path, fault: str) -> None:
    assert_refused(edited(good, FAULTS[fault]), tmp_path)


class Evil:
    """What runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize("content", [pickle.dumps(Evil()), b"", b"\x08" + bytes(7) + b"{}"])
def test_weights_are_data(
    good: bytes, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = members(good)
    (name, *_) = (name for name in contents if name.endswith("weights.safetensors"))
    about = json.loads(contents[name.replace("weights.safetensors", "model.json")])
    about["weights_sha256"] = hashlib.sha256(content).hexdigest()
    about["sha256"] = ""  # as older programs wrote it; a stranger can seal a card, too
    contents |= {
        name: content,
        name.replace("weights.safetensors", "model.json"): json.dumps(about).encode(),
    }
    run_id = name.split("/")[1]

    def claim(value: Any) -> None:
        (run,) = (run for run in first(value)["runs"] if run["run_id"] == run_id)
        run["tags"][SHA256] = about["weights_sha256"]

    assert_refused(edited(packed(contents), claim), tmp_path)


def test_other_files_are_foreign(tmp_path: Path, good: bytes) -> None:
    assert_refused(b"some text", tmp_path, "cannot be read as one")
    assert_refused(packed({"a.txt": b"a"}), tmp_path, "give another")
    contents = members(good)
    assert_refused(
        packed({key: contents[key] for key in contents if key != SUMS}, is_summed=False),
        tmp_path,
        SUMS,
    )
    listed = contents[SUMS] + b"0" * 64 + b"  report2.html\n"
    assert_refused(
        packed({**contents, SUMS: listed}, is_summed=False), tmp_path, "listed and missing"
    )
    assert_refused(packed({**contents, SUMS: b"\xff"}, is_summed=False), tmp_path)
    assert_refused(packed({**contents, STUDIES: b"[" * 100_000}), tmp_path)


def test_what_unpacks_to_too_much_is_not_read(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_TEXT", 1 << 20)
    bomb = packed({**members(good), "report.html": bytes(1 << 24)})
    assert_refused(bomb, tmp_path, "has more than 1,048,576 bytes")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    assert_refused(good, tmp_path, "fewer than 3 members")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.zip")
    said = refused(lambda: take_to(tmp_path / "mlruns", tmp_path / "s.zip"))
    assert "must be a regular file, but it is a device or a pipe" in said
