import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speaker.corpus import Corpus, read_corpus, read_mels, split
from speaker.errors import UserError


@pytest.fixture
def copy(corpus: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus.folder, tmp_path / "copy"))


def change(folder: Path, name: str, edit: Callable[[Any], object]) -> None:
    value = json.loads((folder / name).read_text())
    edit(value)
    (folder / name).write_text(json.dumps(value))


def rename(mapping: dict[str, Any], old: str, new: str) -> None:
    number = mapping["speaker2id"].pop(old)
    mapping["speaker2id"][new] = number
    mapping["id2speaker"][str(number)] = new


def test_reads_what_was_written(corpus: Corpus) -> None:
    assert corpus.n_mels == 40
    assert corpus.speakers == ("id00000", "id00001", "id00002", "id00003")
    assert len(corpus.utterances) == 60
    assert len(corpus.test) == 6
    assert [utterance.speaker for utterance in corpus.utterances] == [i for i in range(4) for _ in range(15)]
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
    "content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a": 1, "a": 2}', b'{"n": NaN}', b"[" * 99_999]
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


@pytest.mark.parametrize(
    ("name", "edit", "rule"),
    [
        ("mapping.json", lambda m: m["speaker2id"].update(id00001=7), "must be 0 to 3"),
        ("mapping.json", lambda m: m["speaker2id"].update(id00001="1"), "must be 0 to 3"),
        ("mapping.json", lambda m: m["id2speaker"].update({"1": "id00002"}), "inverse"),
        ("mapping.json", lambda m: m.pop("id2speaker"), "'id2speaker' is missing"),
        ("mapping.json", lambda m: m.update(speaker2id={"a": 0}, id2speaker={"0": "a"}), "at least 2 speakers"),
        ("metadata.json", lambda m: m["speakers"].pop("id00001"), "'id00001' is in only one"),
        ("metadata.json", lambda m: m.update(n_mels="40"), "n_mels must be int"),
        ("metadata.json", lambda m: m.update(n_mels=0), "n_mels must be at least 1"),
        ("metadata.json", lambda m: m["speakers"].update(id00001={}), "id00001 must be list"),
        ("metadata.json", lambda m: m["speakers"]["id00001"][0].pop("mel_len"), "'mel_len' is missing"),
        ("metadata.json", lambda m: m["speakers"]["id00001"][0].update(mel_len=0), "at least 1"),
        ("metadata.json", lambda m: m["speakers"]["id00001"][0].update(mel_len=True), "must be int"),
        ("metadata.json", lambda m: m["speakers"]["id00001"][0].update(feature_path="../x.pt"), "plain file name"),
        ("metadata.json", lambda m: m["speakers"]["id00001"][0].update(feature_path="/etc/passwd"), "plain file name"),
        ("metadata.json", lambda m: m["speakers"]["id00001"][0].update(mel_len=10**30), "at most 10000000"),
        (
            "metadata.json",
            lambda m: m["speakers"]["id00001"].append(m["speakers"]["id00000"][0]),
            "listed once, but 1 are",
        ),
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


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a folder"):
        read_corpus(tmp_path / "none")


def save(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (Path.unlink, "not there"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-700]), "cannot be read"),
        (lambda path: path.write_bytes(_flip(path.read_bytes())), "checksum|cannot be read"),
        (save({"mels": 1}), "holds dict"),
        (save(torch.zeros(5, 40, device="meta")), "must be of shape|cannot be read"),
        (save(torch.zeros(5, 40).to_sparse()), "must be of shape|cannot be read"),
        (save(torch.zeros(5, 40)), "must be of shape"),
        (save(torch.zeros(40)), "must be of shape"),
        (save([print]), "cannot be read"),
    ],
)
def test_a_bad_feature_file_is_named(copy: Path, spoil: Callable[[Path], None], rule: str) -> None:
    broken = read_corpus(copy)
    spoil(copy / broken.utterances[3].feature_path)
    with pytest.raises(UserError, match=rule) as caught:
        read_mels(broken, broken.utterances[3])
    assert broken.utterances[3].feature_path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_wants_a_gradient_is_only_a_tensor(copy: Path) -> None:
    whole = read_corpus(copy)
    mels = read_mels(whole, whole.utterances[3])
    torch.save(torch.nn.Parameter(mels.double()), copy / whole.utterances[3].feature_path)
    again = read_mels(whole, whole.utterances[3])
    assert torch.equal(again, mels)
    assert not again.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_value_that_is_no_log_mel_is_refused(copy: Path, value: float) -> None:
    broken = read_corpus(copy)
    mels = read_mels(broken, broken.utterances[3])
    mels[2, 2] = value
    torch.save(mels, copy / broken.utterances[3].feature_path)
    with pytest.raises(UserError, match="must lie within"):
        read_mels(broken, broken.utterances[3])


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
