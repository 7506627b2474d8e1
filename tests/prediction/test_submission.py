import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from speaker.common.errors import UserError
from speaker.common.paths import validate_output_path
from speaker.data.corpus import Corpus, read_corpus
from speaker.data.labels import read_csv, read_labels, read_labels_if_right, write_csv
from speaker.model.classifier import SpeakerClassifier
from speaker.model.saved_model import save_model
from speaker.prediction.submission import write_probabilities, write_sidecar
from tests.helpers import TINY
from tests.warm import run_warm

SPEAKERS = ["id00001", "id00000", "id00003", "id00001", "id00002", "id00001"]


def test_writes_the_homeworks_csv(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "submission.csv"
    out.write_text("old")
    write_csv(out, corpus, SPEAKERS)
    assert out.read_bytes().startswith(b"Id,Category\nuttr-")
    rows = list(csv.reader(out.read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == [utterance.feature_path for utterance in corpus.test]
    assert [row[1] for row in rows[1:]] == SPEAKERS
    assert read_csv(out, corpus) == SPEAKERS
    assert os.listdir(tmp_path) == ["submission.csv"]
    with pytest.raises(UserError, match="--out must be a file"):
        write_csv(tmp_path / "none" / "x.csv", corpus, SPEAKERS)


def test_what_the_corpus_does_not_know_is_not_written_silently(
    corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="must name speakers of the corpus, but names 'nobody'"):
        write_csv(tmp_path / "x.csv", corpus, [*SPEAKERS[:5], "nobody"])
    with pytest.raises(ValueError, match="shorter"):
        write_csv(tmp_path / "y.csv", corpus, SPEAKERS[:5])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda text: text.replace("Category", "Speaker"), "must have the header"),
        (lambda text: text[len("Id,Category\n") :], "must have the header"),
        (lambda text: text.replace("id00003", "id00003,3"), "two columns"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "must list the 6 utterances"),
        (
            lambda text: "".join(
                [*text.splitlines(keepends=True)[:1], *text.splitlines(keepends=True)[:0:-1]]
            ),
            "in order",
        ),
        (lambda text: text.replace("id00003", "id00009"), "but names 'id00009'"),
        (lambda text: text.replace("uttr-", "UTTR-", 1), "line 2 has 'UTTR-.*' where 'uttr-"),
        (lambda text: text + '"', "must be a CSV"),
        (lambda _: "", "must have the header"),
        (lambda _: 'version https://git-lfs.github.com/spec/v1\n"', "it is a Git LFS pointer"),
    ],
)
def test_labels_that_are_not_the_test_utterances_are_refused(
    corpus: Corpus, tmp_path: Path, spoil: Callable[[str], str], rule: str
) -> None:
    path = tmp_path / "labels.csv"
    write_csv(path, corpus, SPEAKERS)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=rule):
        read_csv(path, corpus)


SPREADSHEETS: list[Callable[[str], bytes]] = [
    lambda text: text.encode("utf-8-sig"),
    lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.replace("\n", "\r\n").replace(",", ";").encode("utf-8-sig"),
    lambda text: text.replace(",", "\t").encode("utf-16"),
    lambda text: (text + "\n\n").encode(),
]


@pytest.mark.parametrize("save", SPREADSHEETS, ids=range(len(SPREADSHEETS)))
def test_what_a_spreadsheet_saves_is_read(
    corpus: Corpus, tmp_path: Path, save: Callable[[str], bytes]
) -> None:
    path = tmp_path / "labels.csv"
    write_csv(path, corpus, SPEAKERS)
    path.write_bytes(save(path.read_text()))
    assert read_csv(path, corpus) == SPEAKERS


def put_labels(folder: Path) -> Path:
    """Write right labels into a corpus."""
    write_csv(folder / "labels.csv", read_corpus(folder), SPEAKERS)
    return (folder / "labels.csv").rename(folder / "testlabels.csv")


SPOILT: list[Callable[[Path], object]] = [
    lambda path: path.write_text("Id,Category\n"),
    lambda path: path.write_bytes(b"\xff\xff"),
    lambda path: path.write_text(path.read_text().replace("id00003", "nobody\n\x1b[31m")),
    lambda path: path.rename(path.with_name("moved")) and path.symlink_to(path.name),
    lambda path: path.unlink() or path.mkdir(),
    lambda path: path.rename(path.with_name("moved")) and path.symlink_to("nowhere"),
]


@pytest.mark.parametrize("spoil", SPOILT, ids=range(len(SPOILT)))
def test_labels_that_are_wrong_cost_only_the_accuracy(
    copy: Path, spoil: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    path = put_labels(copy)
    corpus = read_corpus(copy)
    assert read_labels_if_right(corpus) == SPEAKERS
    assert not capsys.readouterr().err
    spoil(path)
    assert read_labels_if_right(corpus) is None
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}")
    assert said.count("\n") == 1
    assert "predicting without the accuracy" in said


def test_predict_does_not_need_right_labels(copy: Path, tmp_path: Path) -> None:
    path = put_labels(copy)
    corpus = read_corpus(copy)
    weights = SpeakerClassifier(TINY, 40, 4).state_dict()
    save_model(tmp_path / "model", weights, TINY, 40, corpus.speakers, "digest")
    command = ("speaker", "predict", "--data", copy, "--model", "model", "--device", "cpu")
    done = run_warm(tmp_path, *command)
    assert "Test accuracy" in done.stdout, done.stderr
    path.write_text(path.read_text().replace("Id,", "Name,"))
    done = run_warm(tmp_path, *command, "--out", "again.csv")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "warning: " in done.stderr
    assert "Test accuracy" not in done.stdout
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "submission.csv").read_text()


def test_the_homework_has_no_test_labels(corpus: Corpus) -> None:
    assert read_labels(corpus) is None


def test_probabilities_as_a_table(corpus: Corpus, tmp_path: Path) -> None:
    probabilities = torch.rand(6, 4)
    write_probabilities(tmp_path / "x.parquet", corpus, probabilities)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["Id", *corpus.speakers]
    assert table["Id"].to_pylist() == [utterance.feature_path for utterance in corpus.test]
    for number, name in enumerate(corpus.speakers):
        assert table[name].to_pylist() == probabilities[:, number].tolist()


def test_a_speaker_called_as_the_first_column_has_no_table(corpus: Corpus, tmp_path: Path) -> None:
    odd = replace(corpus, speakers=("Id", *corpus.speakers[1:]))
    with pytest.raises(UserError, match="beside Id, but one is called so"):
        write_probabilities(tmp_path / "x.parquet", odd, torch.rand(6, 4))


def test_a_sidecar_is_json(tmp_path: Path) -> None:
    write_sidecar(tmp_path / "x.json", {"models": [{"run": "1"}]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"models": [{"run": "1"}]}


def test_where_no_file_can_be_made_is_said_first(tmp_path: Path) -> None:
    validate_output_path(tmp_path / "x.csv")
    for content, begins in ((b"", b"Id,"), (b"Id,Category\n", b"Id,"), (b"mine", b"")):
        (tmp_path / "x.csv").write_bytes(content)
        validate_output_path(tmp_path / "x.csv", begins=begins)
    with pytest.raises(UserError, match=r"x.csv holds something else; choose another, or remove"):
        validate_output_path(tmp_path / "x.csv", begins=b"Id,")
    assert (tmp_path / "x.csv").read_bytes() == b"mine"
    (tmp_path / "x.csv").unlink()
    for path in (tmp_path, tmp_path / "none" / "x.csv", Path("/")):
        with pytest.raises(UserError, match="--out must be a file in a folder that is there"):
            validate_output_path(path)


def test_what_is_no_regular_file_or_the_corpuss_own_is_not_replaced(
    corpus: Corpus, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path in (Path("/dev/null"), tmp_path / "fifo", tmp_path / "link", tmp_path / "loop"):
        with pytest.raises(UserError, match="--out must be a new or a regular file"):
            validate_output_path(path)
    with pytest.raises(UserError, match="--out must be a file in a folder"):
        validate_output_path(tmp_path / "loop" / "x.csv", corpus=corpus.folder)
    validate_output_path(tmp_path / "x.csv", corpus=tmp_path / "loop")
    for name in ("testdata.json", "submission.csv"):
        with pytest.raises(UserError, match="--out must lie outside the corpus"):
            validate_output_path(corpus.folder / name, corpus=corpus.folder)
