import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.context import load_context
from speaker.common.errors import UserError
from speaker.data.check import Findings, check, check_manifests, describe, draw
from speaker.data.corpus import Corpus, read_corpus, read_mels
from tests.data.test_corpus import rename
from tests.helpers import change, write_corpus
from tests.warm import run_warm


def test_a_good_corpus_has_no_findings_and_right_numbers(corpus: Corpus) -> None:
    report = check(corpus.folder)
    assert not report.errors.counts
    assert not report.warnings.counts
    text = describe(report)
    lengths = [utterance.frames for utterance in (*corpus.utterances, *corpus.test)]
    assert "4 speakers, 60 labelled and 6 test utterances, 40 mels" in text
    assert "15 to 15 labelled utterances each, median 15" in text
    assert f"{min(lengths)} to {max(lengths)} frames" in text
    assert f"frames      {sum(lengths):,}, " in text
    packed = 2 * 40 * sum(utterance.frames for utterance in corpus.utterances)
    assert f"packed {packed / 1e6:.1f} MB" in text
    everything = torch.cat(
        [read_mels(corpus, utterance) for utterance in (*corpus.utterances, *corpus.test)]
    )
    mean, deviation = report.bands()
    assert torch.allclose(mean.float(), everything.mean(0), atol=1e-4)
    assert torch.allclose(deviation.float(), everything.std(0), atol=1e-2)


def test_the_share_at_the_floor(copy: Path) -> None:
    corpus = read_corpus(copy)
    for utterance in corpus.utterances[:2]:
        mels = read_mels(corpus, utterance)
        mels[:, :10] = -20.7233
        torch.save(mels, copy / utterance.feature_path)
    torch.save(
        torch.full((corpus.test[0].frames, 40), -20.7233), copy / corpus.test[0].feature_path
    )
    report = check(copy)
    assert sorted(report.floor_shares, reverse=True)[:4] == [1.0, 0.25, 0.25, 0.0]
    assert report.warnings.counts == {"utterance of nothing but silence": 1}


def test_each_class_of_problem_is_counted_with_its_first_cases(copy: Path) -> None:
    corpus = read_corpus(copy)
    paths = [copy / utterance.feature_path for utterance in corpus.utterances]
    for path in paths[:7]:
        path.unlink()
    for path in paths[7:9]:
        path.write_bytes(path.read_bytes()[:-300])
    torch.save(torch.zeros(3, 40), paths[9])
    shutil.copy(paths[20], paths[14])
    shutil.copy(paths[23], paths[24])
    shutil.copy(paths[20], copy / corpus.test[1].feature_path)

    def edit(manifest: Any) -> None:
        entries = manifest["speakers"]
        entries["id00000"][14]["mel_len"] = entries["id00001"][5]["mel_len"]
        entries["id00001"][9]["mel_len"] = entries["id00001"][8]["mel_len"]
        entries["id00003"][0]["mel_len"] = 0
        entries["id00003"][1:] = []

    change(copy, "metadata.json", edit)
    change(
        copy,
        "testdata.json",
        lambda m: m["utterances"][1].update(mel_len=corpus.utterances[20].frames),
    )
    change(
        copy,
        "testdata.json",
        lambda m: m["utterances"].append({"feature_path": paths[30].name, "mel_len": 9}),
    )
    (copy / "stray.txt").touch()
    (copy / "sox_effects.pt").touch()
    report = check(copy)
    assert report.errors.counts == {
        "feature file that is missing or not a file": 7,
        "feature file that is damaged": 2,
        "tensor of another kind than the entry says": 2,
        "mel_len out of range": 1,
        "the same features under two speakers": 1,
    }
    assert report.warnings.counts == {
        "speaker with fewer than two utterances, who cannot be both learnt and measured": 1,
        "test utterance that is also a training utterance": 2,
        "the same features twice under one speaker": 1,
        "file that no manifest lists": 16,
    }
    text = describe(report)
    assert text.count("is missing; fetch it again") == 5
    assert "7 x feature file that is missing or not a file" in text
    assert "and 2 more" in text
    assert f"{paths[20].name} of id00001 equals {paths[14].name} of id00000" in text


def test_labels_that_do_not_belong_are_an_error(copy: Path) -> None:
    (copy / "testlabels.csv").write_text("Id,Category\nuttr-1.pt,id00000\n")
    report = check(copy)
    assert report.errors.counts == {"testlabels.csv that does not belong to testdata.json": 1}


def test_files_that_are_read_but_should_be_saved_again_are_warned_of(copy: Path) -> None:
    corpus = read_corpus(copy)
    for utterance, rows, old in zip(corpus.utterances[:3], (3, 3_000, 0), (0, 0, 1), strict=True):
        mels = torch.cat((torch.zeros(rows, 40), read_mels(corpus, utterance)))[rows:]
        path = copy / utterance.feature_path
        torch.save(mels, path, _use_new_zipfile_serialization=not old)
    report = check(copy)
    assert not report.errors.counts
    assert report.warnings.cases == {
        "feature file that holds more than its utterance; save the tensor's clone()": [
            f"{corpus.utterances[1].feature_path} has "
            f"{(copy / corpus.utterances[1].feature_path).stat().st_size:,} bytes"
        ],
        "feature file without checksums, of PyTorch before 1.6; save it again": [
            corpus.utterances[2].feature_path
        ],
    }


def rename_in_metadata(metadata: dict[str, Any], old: str, new: str) -> None:
    metadata["speakers"][new] = metadata["speakers"].pop(old)


@pytest.mark.parametrize(
    "names",
    [("Jos\u00e9", "Jose\u0301"), ("anna", "Anna"), ("anna", "anna "), ("\ufb01n", "fin")],
)
def test_two_speakers_whose_names_look_the_same_are_warned_of(
    copy: Path, names: tuple[str, str]
) -> None:
    for old, new in zip(("id00001", "id00003"), names, strict=True):
        change(copy, "mapping.json", partial(rename, old=old, new=new))
        change(
            copy,
            "metadata.json",
            partial(rename_in_metadata, old=old, new=new),
        )
    report = check(copy)
    assert not report.errors.counts
    case = f"{names[0]!a} and {names[1]!a}"
    assert report.warnings.cases == {"two speakers whose names look the same": [case]}


def test_a_name_with_a_line_break_is_in_one_line(copy: Path) -> None:
    (copy / "stray\nerrors none\x1b[31m").touch()
    lines = describe(check(copy)).split("\n")
    assert lines[-1].strip() == r"stray\nerrors none\x1b[31m"


def test_the_figure(corpus: Corpus, tmp_path: Path) -> None:
    report = check(corpus.folder)
    draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    draw(report, tmp_path / "a.svg")
    assert all(
        word in (tmp_path / "a.svg").read_text() for word in ("<svg", "mel band", "share of values")
    )


def test_an_empty_corpus_can_be_described_and_drawn(tmp_path: Path) -> None:
    write_corpus(tmp_path / "empty", per_speaker=0, test=0)
    report = check(tmp_path / "empty")
    assert "0 labelled and 0 test utterances" in describe(report)
    draw(report, tmp_path / "a.png")


def test_the_quick_part_reads_no_features(copy: Path) -> None:
    assert not check_manifests(read_corpus(copy)).counts
    corpus = read_corpus(copy)
    (copy / corpus.utterances[3].feature_path).write_bytes(b"")
    assert not check_manifests(corpus).counts
    (copy / corpus.utterances[5].feature_path).unlink()
    (copy / corpus.test[5].feature_path).unlink()
    with pytest.raises(
        UserError,
        match=f"2 of 66 are missing, the first is {corpus.utterances[5].feature_path}; run python",
    ):
        check_manifests(corpus)


def test_a_search_warns_of_labels_before_it_packs(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = read_corpus(copy)
    utterance = corpus.utterances[0]
    entry = {"feature_path": utterance.feature_path, "mel_len": utterance.frames}
    change(copy, "testdata.json", lambda m: m["utterances"].append(entry))
    shutil.copy(copy / corpus.utterances[3].feature_path, copy / corpus.utterances[40].feature_path)
    change(
        copy,
        "metadata.json",
        lambda m: m["speakers"]["id00002"][10].update(mel_len=corpus.utterances[3].frames),
    )
    load_context(copy, "cpu", "auto", tmp_path)
    out = capsys.readouterr().out
    assert "1 x test utterance that is also a training utterance" in out
    assert "warning: 1 utterances stand under two speakers" in out


def test_frames_that_are_all_alike_are_warned_of(copy: Path) -> None:
    utterance = read_corpus(copy).utterances[7]
    torch.save(torch.arange(40.0).repeat(utterance.frames, 1), copy / utterance.feature_path)
    assert check(copy).warnings.counts == {"utterance whose frames are all alike": 1}


def test_findings_keep_the_first_cases_alone() -> None:
    findings = Findings()
    for number in range(1_000):
        findings.add("kind", str(number))
    assert findings.cases["kind"] == ["0", "1", "2", "3", "4"]
    assert findings.lines("errors")[0] == "errors      1,000"
    assert findings.lines("errors")[-1] == "      and 995 more"


@pytest.mark.slow
def test_the_verb(copy: Path, tmp_path: Path) -> None:
    done = run_warm(tmp_path, "speaker", "check", "copy")
    assert done.returncode == 0, done.stderr
    assert re.search(r"errors +none\nwarnings +none\nfigure +corpus.png\n", done.stdout)
    assert (tmp_path / "corpus.png").exists()
    (copy / read_corpus(copy).utterances[0].feature_path).unlink()
    failed = run_warm(tmp_path, "speaker", "check", "copy", "--figure", "a.svg")
    assert failed.returncode == 2
    assert "1 x feature file that is missing" in failed.stdout
    assert (
        failed.stderr
        == "error: a corpus must have no errors, but copy has 1 of 1 kinds; fix them as said above\n"
    )
    below = run_warm(copy / "..", "speaker", "check", ".")
    assert below.stderr == (
        "error: . must be a corpus, but holds none of mapping.json, metadata.json, testdata.json; "
        "the corpus is in copy: give that instead of .\n"
    )
    (copy / "mapping.json").write_text("[]")
    failed = run_warm(tmp_path, "speaker", "check", "copy")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
