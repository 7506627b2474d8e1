import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speaker.common.errors import UserError
from speaker.common.seeding import permutation
from speaker.data.corpus import (
    MAX_FEATURE_BYTES,
    MAX_MANIFEST_BYTES,
    Corpus,
    UtteranceError,
    read_corpus,
    read_manifests,
    read_mels,
)
from speaker.data.split import split
from tests.helpers import change, refused


def rename(mapping: dict[str, Any], old: str, new: str) -> None:
    number = mapping["speaker2id"].pop(old)
    mapping["speaker2id"][new] = number
    mapping["id2speaker"][str(number)] = new


def test_reads_what_was_written(corpus: Corpus) -> None:
    assert corpus.n_mels == 40
    assert corpus.speakers == ("id00000", "id00001", "id00002", "id00003")
    assert len(corpus.utterances) == 60
    assert len(corpus.test) == 6
    assert [utterance.speaker for utterance in corpus.utterances] == [
        i for i in range(4) for _ in range(15)
    ]
    assert read_mels(corpus, corpus.utterances[0]).shape == (corpus.utterances[0].frames, 40)


def test_the_homework_folder_takes_its_parents_name(corpus: Corpus, tmp_path: Path) -> None:
    assert corpus.name == "tiny"
    folder = tmp_path / "asc-hw4" / "Dataset"
    shutil.copytree(corpus.folder, folder)
    assert read_corpus(folder).name == "asc-hw4-Dataset"
    odd = tmp_path / "Größe 1 (neu)"
    shutil.copytree(corpus.folder, odd)
    assert read_corpus(odd).name == "Gr-e-1-neu"


@pytest.mark.parametrize("name", ["mapping.json", "metadata.json", "testdata.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xfe",
        b"uttr",
        b'{"a": 1, "a": 2}',
        b'{"n": NaN}',
        b"[" * 99_999,
        b'{"a":' * 99_999,
        b'{"n": ' + b"9" * 5_000 + b"}",
        b"{}",
    ],
)
def test_a_broken_manifest_is_one_clear_line(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        read_corpus(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mapping.json", "metadata.json", "testdata.json"])
def test_a_missing_manifest_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        read_corpus(copy)


@pytest.mark.parametrize("name", ["mapping.json", "metadata.json", "testdata.json"])
@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_a_cut_manifest_is_named(copy: Path, name: str, cut: float) -> None:
    text = (copy / name).read_bytes()
    (copy / name).write_bytes(text[: int(len(text) * cut)])
    with pytest.raises(UserError, match=f"{name} must be JSON"):
        read_corpus(copy)


def test_a_huge_manifest_is_not_read(copy: Path) -> None:
    with (copy / "metadata.json").open("wb") as stream:
        stream.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(UserError, match="metadata.json: must have at most 268,435,456 bytes"):
        read_corpus(copy)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_manifest_that_is_no_file_is_not_waited_for(
    copy: Path, make: Callable[[Path], None]
) -> None:
    (copy / "mapping.json").unlink()
    make(copy / "mapping.json")
    with pytest.raises(UserError, match="mapping.json: must be a (regular )?file"):
        read_corpus(copy)


@pytest.mark.parametrize(
    ("name", "edit", "rule"),
    [
        ("mapping.json", lambda m: m["speaker2id"].update(id00001=7), "must be 0 to 3"),
        ("mapping.json", lambda m: m["speaker2id"].update(id00001="1"), "must be 0 to 3"),
        ("mapping.json", lambda m: m["id2speaker"].update({"1": "id00002"}), "inverse"),
        ("mapping.json", lambda m: m.pop("id2speaker"), "'id2speaker' is missing"),
        (
            "mapping.json",
            lambda m: m.update(speaker2id={"a": 0}, id2speaker={"0": "a"}),
            "at least 2 speakers",
        ),
        (
            "metadata.json",
            lambda m: m["speakers"].pop("id00001"),
            "lacks 1 of the 4 speakers of mapping.json",
        ),
        ("metadata.json", lambda m: m.update(n_mels="40"), "n_mels must be int"),
        ("metadata.json", lambda m: m.update(n_mels=0), "n_mels must be at least 1"),
        ("metadata.json", lambda m: m["speakers"].update(id00001={}), "id00001 must be list"),
        (
            "metadata.json",
            lambda m: m["speakers"]["id00001"][0].pop("mel_len"),
            "'mel_len' is missing",
        ),
        ("metadata.json", lambda m: m["speakers"]["id00001"][0].update(mel_len=0), "at least 1"),
        (
            "metadata.json",
            lambda m: m["speakers"]["id00001"][0].update(mel_len=True),
            "must be int",
        ),
        (
            "metadata.json",
            lambda m: m["speakers"]["id00001"][0].update(feature_path="../x.pt"),
            "plain file name",
        ),
        (
            "metadata.json",
            lambda m: m["speakers"]["id00001"][0].update(feature_path="/etc/passwd"),
            "plain file name",
        ),
        (
            "metadata.json",
            lambda m: m["speakers"]["id00001"][0].update(mel_len=10**30),
            "at most 360000",
        ),
        (
            "metadata.json",
            lambda m: m["speakers"]["id00001"].append(m["speakers"]["id00000"][0]),
            r"id00001\[15\]: a file must be listed once, but uttr-.*id00000\[0\], too",
        ),
        ("testdata.json", lambda m: m["utterances"].append(m["utterances"][0]), "listed once"),
        ("metadata.json", lambda m: m.update(n_mels=10**9), "at most 1000"),
        ("mapping.json", lambda m: m["speaker2id"].update(id00001=2), "must be 0 to 3"),
        ("mapping.json", lambda m: rename(m, "id00001", "a\nb"), "printable characters"),
        ("mapping.json", lambda m: rename(m, "id00001", "\ud800"), "printable characters"),
        ("testdata.json", lambda m: m.update(n_mels=80), "that of metadata.json, 40, but got 80"),
        ("testdata.json", lambda m: m["utterances"].append(3), r"utterances\[6\] must be dict"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(
    copy: Path, name: str, edit: Callable[[Any], object], rule: str
) -> None:
    change(copy, name, edit)
    with pytest.raises(UserError, match=rule):
        read_corpus(copy)


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x.pt",
        "/etc/passwd",
        "a/b.pt",
        "a\\b.pt",
        "..\\x.pt",
        "x\0.pt",
        "https://example.org/x.pt",
        "file:///x.pt",
        "x" * 5_000,
        "",
        ".hidden.pt",
        "x\n.pt",
        "\u202e.pt",
    ],
)
@pytest.mark.parametrize("name", ["metadata.json", "testdata.json"])
def test_a_feature_path_that_is_no_plain_name_is_refused(copy: Path, name: str, path: str) -> None:
    def edit(manifest: Any) -> None:
        entries = (
            manifest["utterances"] if name == "testdata.json" else manifest["speakers"]["id00002"]
        )
        entries[4]["feature_path"] = path

    change(copy, name, edit)
    with pytest.raises(
        UserError, match=rf"{name}: .*\[4\].feature_path must be a plain file name"
    ) as caught:
        read_corpus(copy)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_all_faults_are_found_and_the_others_read(copy: Path) -> None:
    def edit(manifest: Any) -> None:
        manifest["speakers"]["id00001"][3]["mel_len"] = -1
        manifest["speakers"]["id00002"][0] = []

    change(copy, "metadata.json", edit)
    corpus, faults = read_manifests(copy)
    assert len(corpus.utterances) == 58
    assert [fault.kind for fault in faults] == ["mel_len out of range", "entry of another form"]
    with pytest.raises(UserError, match=r"mel_len must be .* \(1 more: python -m speaker check "):
        read_corpus(copy)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a folder"):
        read_corpus(tmp_path / "none")


MELS = torch.arange(2_000.0).view(50, 40) / 100


def save(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside.pt"
    path.rename(outside)
    path.symlink_to(outside)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8000\n"


def rewrite(path: Path, compression: int, edit: Callable[[bytes], bytes] = bytes) -> None:
    """Write a feature file again, its pickle edited, with right checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, edit(content) if name.endswith("data.pkl") else content)


class Payload:
    """Runs code when a pickle of it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch was-run",)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (Path.unlink, "is missing"),
        (link_out, "is a link out of it"),
        (replace_by_folder, "Is a directory"),
        (replace_by_fifo, "must be a regular file"),
        (lambda path: path.write_bytes(b""), "whole file of torch.save"),
        (lambda path: path.write_bytes(b"uttr" * 5_000), "whole file of torch.save"),
        (lambda path: os.truncate(path, MAX_FEATURE_BYTES + 1), "must have at most"),
        (lambda path: path.write_bytes(b"<html>quota"), "but is a web page; open it in a browser"),
        (lambda path: path.write_bytes(LFS_POINTER), "but is a Git LFS pointer; run git lfs pull"),
        (
            lambda path: path.write_bytes(b"\x93NUMPY\1\0"),
            "but is a NumPy array; save it as a tensor",
        ),
        (
            lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
            "but is a gzip file; unpack",
        ),
        (lambda path: path.write_bytes(_flip(path.read_bytes())), "checksum"),
        (lambda path: rewrite(path, zipfile.ZIP_DEFLATED), "is compressed"),
        (
            lambda path: rewrite(path, zipfile.ZIP_STORED, lambda pickled: pickled[:-20]),
            "cannot be read as one",
        ),
        (save({"mels": 1}), "dense tensor alone, but holds 0 tensors"),
        (save({"mels": MELS}), "holds dict"),
        (save([MELS]), "holds list"),
        (save([MELS, MELS + 1]), "holds 2 tensors"),
        (save([print]), "holds '__builtin__.print'"),
        (save(Payload()), "holds 'posix.system'"),
        (
            save(torch.zeros(50, 40, device="meta")),
            "holds 'torch._utils._rebuild_meta_tensor_no_storage'",
        ),
        (save(MELS.to_sparse()), "holds 'torch._utils._rebuild_sparse_tensor'"),
        (save(list(range(5_000))), "dense tensor alone, but holds more"),
        (lambda path: write_zip(path, {f"x/{i}": bytes(9_000) for i in range(120)}), "100 members"),
        (
            lambda path: write_zip(path, {"x/data.pkl": b"", "y/data.pkl": b""}),
            "cannot be read as one",
        ),
        (save(MELS.to(torch.complex64)), "must hold dense real numbers, .*complex64"),
        (save(MELS.int()), "must hold dense real numbers, .*int32"),
        (
            lambda path: torch.save(torch.quantize_per_tensor(MELS, 0.1, 0, torch.qint8), path),
            "holds 'torch._utils._rebuild_qtensor'",
        ),
        (save(torch.zeros(50, 80)), r"must be of shape \(50, 40\), but is \(50, 80\)"),
        (save(torch.zeros(40)), r"but is \(40,\)"),
        (save(MELS.T), r"but is \(40, 50\)"),
        (save(torch.zeros(0, 40)), r"but is \(0, 40\)"),
        (save(MELS[:-1]), r"but is \(49, 40\)"),
        (save(torch.zeros([1] * 60)), "must be of shape"),
        (
            save(torch.zeros(1).as_strided((1_000_000_000, 40), (0, 0))),
            r"but is \(1000000000, 40\)",
        ),
        (save(torch.zeros(1).as_strided((50, 40), (0, 0))), "repeats a few"),
        (save(MELS.where(MELS != 3, float("nan"))), "must lie within"),
        (save(MELS.where(MELS != 3, float("inf"))), "must lie within"),
        (save(MELS.where(MELS != 3, -1e30)), "must lie within"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch means to drop quantised tensors
def test_a_bad_feature_file_is_named(
    copy: Path, spoil: Callable[[Path], None], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copy, "metadata.json", lambda m: m["speakers"]["id00000"][3].update(mel_len=50))
    corpus = read_corpus(copy)
    path = copy / corpus.utterances[3].feature_path
    torch.save(MELS, path)
    assert torch.equal(read_mels(corpus, corpus.utterances[3]), MELS)
    monkeypatch.chdir(copy)
    spoil(path)
    with pytest.raises(UtteranceError, match=rule) as caught:
        read_mels(corpus, corpus.utterances[3])
    assert path.name in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (copy / "was-run").exists()


def test_a_feature_file_cut_anywhere_is_refused(copy: Path) -> None:
    corpus = read_corpus(copy)
    path = copy / corpus.utterances[3].feature_path
    data = path.read_bytes()
    for cut in {*range(0, len(data), 97), *range(len(data) - 400, len(data))}:
        path.write_bytes(data[:cut])
        with pytest.raises(UtteranceError):
            read_mels(corpus, corpus.utterances[3])


def test_a_flipped_bit_is_refused_or_changes_nothing(copy: Path) -> None:
    """500 bits of a file: torch alone would load most of them as another tensor."""
    corpus = read_corpus(copy)
    path = copy / corpus.utterances[3].feature_path
    data, mels = path.read_bytes(), read_mels(corpus, corpus.utterances[3])
    bits = permutation(8 * len(data), "flips")[:500].tolist()
    refused = 0
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert torch.equal(read_mels(corpus, corpus.utterances[3]), mels), (
                f"bit {bit} was not noticed"
            )
        except UtteranceError:
            refused += 1
    assert refused > 400


def test_a_tensor_that_wants_a_gradient_is_only_a_tensor(copy: Path) -> None:
    whole = read_corpus(copy)
    mels = read_mels(whole, whole.utterances[3])
    torch.save(torch.nn.Parameter(mels.double()), copy / whole.utterances[3].feature_path)
    again = read_mels(whole, whole.utterances[3])
    assert torch.equal(again, mels)
    assert not again.requires_grad


def old_format(tensor: object) -> bytes:
    """Return a file of torch.save as PyTorch before 1.6 wrote it."""
    stream = io.BytesIO()
    torch.save(tensor, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("rows", [3, 3_000])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_slice_of_a_larger_tensor_is_read(
    copy: Path, rows: int, old: bool, dtype: torch.dtype
) -> None:
    """torch saves all that a slice was cut from: 3,000 rows are more than the entry warrants."""
    corpus = read_corpus(copy)
    utterance = corpus.utterances[3]
    mels = torch.randn(rows + utterance.frames, 40).to(dtype)
    torch.save(mels[rows:], copy / utterance.feature_path, _use_new_zipfile_serialization=not old)
    read = read_mels(corpus, utterance)
    assert torch.equal(read, mels[rows:].float())
    assert read.untyped_storage().nbytes() <= 2 * read.nbytes, "the rest must not stay in memory"


def test_the_old_format_is_read(copy: Path) -> None:
    corpus = read_corpus(copy)
    utterance = corpus.utterances[3]
    mels = read_mels(corpus, utterance)
    for value in (mels, torch.nn.Parameter(mels), mels.T.contiguous().T):
        (copy / utterance.feature_path).write_bytes(old_format(value))
        assert torch.equal(read_mels(corpus, utterance), mels)


OLD = old_format(MELS)
OLD_COUNT = (2_000).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (old_format({"mels": MELS}), "holds dict"),
        (old_format([MELS, MELS + 1]), "holds 2 tensors"),
        (old_format(Payload()), "holds 'posix.system'"),
        (old_format(MELS.int()), "holds a IntStorage"),
        (old_format(MELS.to_sparse()), "_rebuild_sparse_tensor"),
        (old_format(torch.zeros(1).as_strided((50, 40), (0, 0))), "declares other sizes"),
        (old_format(MELS[:-1]), r"but is \(49, 40\)"),
        (OLD + b"more", "is cut or has more at its end"),
        (OLD.replace(b"M\xd0\x07N", b"J\xd0\x07\xd0\x07N"), "declares other sizes"),
        (OLD.replace(OLD_COUNT, (2**62).to_bytes(8, "little")), "is cut or has more at its end"),
        (OLD.replace(b"torch\nFloatStorage", b"builtins\nbytearray"), "holds 'builtins.bytearray'"),
        (OLD[:15] + b"\x80\x02" + b"N0" * 500 + OLD[15:], "cannot be read as one"),
    ],
)
def test_an_old_file_that_is_not_one_tensor_is_refused(copy: Path, data: bytes, rule: str) -> None:
    """torch would take memory as such a file says, before it sees that nothing is there."""
    change(copy, "metadata.json", lambda m: m["speakers"]["id00000"][3].update(mel_len=50))
    corpus = read_corpus(copy)
    (copy / corpus.utterances[3].feature_path).write_bytes(data)
    with pytest.raises(UtteranceError, match=rule) as caught:
        read_mels(corpus, corpus.utterances[3])
    assert str(caught.value).isprintable()


def test_an_old_file_cut_anywhere_is_refused(copy: Path) -> None:
    corpus = read_corpus(copy)
    path = copy / corpus.utterances[3].feature_path
    data = old_format(read_mels(corpus, corpus.utterances[3]))
    for cut in {*range(0, len(data), 97), *range(400), *range(len(data) - 100, len(data))}:
        path.write_bytes(data[:cut])
        with pytest.raises(UtteranceError):
            read_mels(corpus, corpus.utterances[3])


def test_a_zip_may_not_take_memory_that_no_data_fill(copy: Path) -> None:
    corpus = read_corpus(copy)
    path = copy / corpus.utterances[3].feature_path
    rewrite(path, zipfile.ZIP_STORED, lambda _: b"\x80\x02cbuiltins\nbytearray\n(J\0\0\0\x7ftR.")
    with pytest.raises(UtteranceError, match="holds 'builtins.bytearray'"):
        read_mels(corpus, corpus.utterances[3])


def test_links_out_of_a_corpus_name_the_command_that_copies_them(
    copy: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked corpus"
    linked.mkdir()
    for path in copy.iterdir():
        (linked / path.name).symlink_to(path)
    with pytest.raises(
        UserError, match="is a link out of it; copy the files themselves by cp"
    ) as caught:
        read_corpus(linked)
    command = re.search("cp -rL .*(?= and give)", str(caught.value))
    assert command
    subprocess.run(command[0], shell=True, check=True)  # noqa: S602  # as a user would
    corpus = read_corpus(tmp_path / "linked corpus-copy")
    read_mels(corpus, corpus.utterances[3])


def test_a_link_to_a_corpus_is_the_corpus(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    assert read_corpus(tmp_path / "link").folder == copy


def test_links_that_lead_nowhere_are_one_line(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "but " + str(tmp_path / "loop") + " is a link to itself" in refused(
        lambda: read_corpus(tmp_path / "loop")
    )
    (tmp_path / "dead").symlink_to("gone")
    assert "is a link to gone, which does not exist" in refused(
        lambda: read_corpus(tmp_path / "dead")
    )
    for target, rule in (("mapping.json", "is a link to itself"), ("gone", "which does not exist")):
        (copy / "mapping.json").unlink()
        (copy / "mapping.json").symlink_to(target)
        assert rule in refused(lambda: read_corpus(copy))


def test_the_folder_above_or_below_is_named(copy: Path, tmp_path: Path) -> None:
    inside = copy / "inner"
    inside.mkdir()
    message = refused(lambda: read_corpus(tmp_path))
    assert f"{tmp_path} must be a corpus, but holds none of mapping.json" in message
    assert f"the corpus is in {copy}: give that instead of {tmp_path}" in message
    assert f"the corpus is in {copy}: give that" in refused(lambda: read_corpus(inside))
    assert f"the corpus is in {copy}: give that" in refused(
        lambda: read_corpus(copy / "metadata.json")
    )
    shutil.copytree(copy, tmp_path / "other copy")
    message = refused(lambda: read_corpus(tmp_path))
    assert f"corpora are in {copy} or '{tmp_path / 'other copy'}'" in message


def test_a_relative_folder_beside_a_corpus(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "inner").mkdir()
    monkeypatch.chdir(copy.parent)
    assert "the corpus is in copy: give that instead of ." in refused(lambda: read_corpus(Path()))
    monkeypatch.chdir(copy / "inner")
    assert f"the corpus is in {copy}: give" in refused(lambda: read_corpus(Path()))
    assert "the corpus is in ../../copy: give" in refused(
        lambda: read_corpus(Path("../../copy/inner"))
    )


def test_no_corpus_near(tmp_path: Path) -> None:
    message = refused(lambda: read_corpus(tmp_path))
    assert "make one with python -m speaker download" in message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_manifests_that_windows_wrote_are_read(copy: Path, corpus: Corpus, encoding: str) -> None:
    for name in ("mapping.json", "metadata.json", "testdata.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace(", ", ",\r\n"), encoding=encoding)
    assert read_corpus(copy).utterances == corpus.utterances


def test_a_manifest_that_is_something_else_is_named(copy: Path) -> None:
    (copy / "metadata.json").write_bytes(LFS_POINTER)
    assert "it is a Git LFS pointer); run git lfs pull" in refused(lambda: read_corpus(copy))


def test_a_subset_of_the_speakers_names_the_way_out(copy: Path) -> None:
    change(copy, "metadata.json", lambda m: m["speakers"].pop("id00001"))
    message = refused(lambda: read_corpus(copy))
    assert (
        "metadata.json lacks 1 of the 4 speakers of mapping.json (the first is 'id00001')"
        in message
    )
    change(copy, "mapping.json", lambda m: rename(m, "id00002", "another"))
    message = refused(lambda: read_corpus(copy))
    assert "lacks 2 of the 4 speakers of mapping.json (the first is 'another')" in message
    assert (
        "mapping.json lacks 1 of the 3 speakers of metadata.json (the first is 'id00002')"
        in message
    )
    command = message.partition("by: ")[2].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True)  # noqa: S602  # as a user would
    assert read_corpus(copy).speakers == ("id00000", "id00002", "id00003")


def test_another_unicode_form_is_named(copy: Path) -> None:
    name = "Jos\N{LATIN SMALL LETTER E WITH ACUTE}"
    change(copy, "mapping.json", lambda m: rename(m, "id00001", name))
    other = unicodedata.normalize("NFD", name)
    change(
        copy, "metadata.json", lambda m: m["speakers"].update({other: m["speakers"].pop("id00001")})
    )
    assert f"writes {name!r} in another Unicode form" in refused(lambda: read_corpus(copy))


def test_the_homeworks_split() -> None:
    train, valid = split(56_666, seed=0)
    assert (len(train), len(valid)) == (50_999, 5_667)
    assert torch.equal(torch.cat((train, valid)).sort().values, torch.arange(56_666))
    again, _ = split(56_666, seed=0)
    other, _ = split(56_666, seed=1)
    assert torch.equal(train, again)
    assert not torch.equal(train, other)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_to_split(n: int) -> None:
    with pytest.raises(UserError, match="at least 2"):
        split(n, seed=0)


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
