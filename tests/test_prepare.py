"""Audio to corpora, with real files, real processes and real signals."""

import csv
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speaker.corpus import read_mels
from speaker.errors import UserError
from speaker.features import log_mel, normalize_peak, trim_silence
from speaker.prepare import JOURNAL, Plan, RecordingsError, prepare
from speaker.synthesis import draw_voice, synthesize
from tests.helpers import environment, program, run, start


def write_audio(folder: Path, speakers: int = 3, each: int = 5, depth: str = "") -> Path:
    """Write recordings of invented speakers: wav and FLAC, below `speaker/` or `speaker/<depth>/`."""
    for speaker in range(speakers):
        here = folder / f"id{speaker:05d}" / depth
        here.mkdir(parents=True)
        voice = draw_voice(f"prepare/{speaker}")
        for number in range(each):
            ending = ".flac" if number % 2 else ".wav"
            soundfile.write(here / f"{number:05d}{ending}", synthesize(voice, f"{speaker}/{number}").numpy(), 16_000)
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_audio(tmp_path_factory.mktemp("audio") / "audio")


@pytest.fixture(scope="module")
def many(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough recordings to stop among them."""
    copy = Path(shutil.copytree(audio, tmp_path_factory.mktemp("many") / "audio"))
    for speaker in sorted(copy.iterdir()):
        for number in range(40):
            shutil.copy(speaker / "00000.wav", speaker / f"more{number:05d}.wav")
    return copy


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the corpus that nothing interrupted."""
    return files(prepare(many, tmp_path_factory.mktemp("whole") / "corpus", Plan(test_share=0.1)).corpus.folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_features_are_the_homeworks(audio: Path, tmp_path: Path) -> None:
    prepared = prepare(audio, tmp_path / "corpus", Plan())
    corpus = prepared.corpus
    assert corpus.speakers == ("id00000", "id00001", "id00002")
    assert [utterance.speaker for utterance in corpus.utterances] == [0] * 5 + [1] * 5 + [2] * 5
    assert corpus.test == ()
    waveform, _ = soundfile.read(audio / "id00001" / "00003.flac", dtype="float32")
    expected = log_mel(trim_silence(normalize_peak(torch.from_numpy(waveform))))
    assert torch.allclose(read_mels(corpus, corpus.utterances[5 + 3]), expected, atol=1e-4)
    assert prepared.frames == sum(utterance.frames for utterance in corpus.utterances)
    assert (prepared.bad, prepared.ignored, prepared.clipped) == ((), 0, 0)
    assert len(list(corpus.folder.iterdir())) == 15 + 3, "nothing else may lie in a corpus"


def test_the_same_corpus_by_any_number_of_processes(audio: Path, tmp_path: Path) -> None:
    one = prepare(audio, tmp_path / "one", Plan(test_share=0.2)).corpus
    two = prepare(audio, tmp_path / "two", Plan(test_share=0.2, workers=2)).corpus
    assert files(one.folder) == files(two.folder)


def test_a_share_is_held_out_with_its_labels_beside_it(audio: Path, tmp_path: Path) -> None:
    corpus = prepare(audio, tmp_path / "corpus", Plan(test_share=0.4)).corpus
    assert (len(corpus.utterances), len(corpus.test)) == (9, 6)
    everything = prepare(audio, tmp_path / "all", Plan()).corpus
    speaker = {each.feature_path: everything.speakers[each.speaker or 0] for each in everything.utterances}
    rows = list(csv.reader((corpus.folder / "testlabels.csv").read_text().splitlines()))
    assert rows == [["Id", "Category"], *([each.feature_path, speaker[each.feature_path]] for each in corpus.test)]
    other = prepare(audio, tmp_path / "other", Plan(test_share=0.4, seed=1)).corpus
    assert {each.feature_path for each in other.test} != {each.feature_path for each in corpus.test}


def test_voxcelebs_tree_and_a_sample_of_its_speakers(tmp_path: Path) -> None:
    audio = write_audio(tmp_path / "audio", speakers=5, each=1, depth="video1")
    for speaker in sorted(audio.iterdir()):
        shutil.copytree(speaker / "video1", speaker / "video2")
    names = [prepare(audio, tmp_path / f"{seed}", Plan(speakers=3, seed=seed)).corpus.speakers for seed in range(3)]
    assert all(len(set(each)) == 3 for each in names)
    assert len(set(names)) > 1, "the seed must matter"
    corpus = prepare(audio, tmp_path / "again", Plan(speakers=3, seed=2)).corpus
    assert corpus.speakers == names[2]
    assert len(corpus.utterances) == 6, "both videos of each"


def test_what_cannot_be_used_is_named_and_left_out_only_on_request(audio: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(audio, tmp_path / "spoilt"))
    (spoilt / "id00000" / "text.wav").write_text("no sound")
    (spoilt / "id00000" / "._00001.wav").write_text("a Mac's")
    (spoilt / "id00001" / "00000.wav").write_bytes((audio / "id00001" / "00000.wav").read_bytes()[:9_000])
    (spoilt / "README.txt").touch()
    soundfile.write(spoilt / "id00001" / "silence.wav", np.zeros(16_000), 16_000)
    soundfile.write(spoilt / "id00001" / "one.wav", np.ones(1), 16_000)
    soundfile.write(spoilt / "id00001" / "clipped.wav", np.sign(np.sin(np.arange(16_000) / 9)), 16_000)
    with pytest.raises(RecordingsError, match="4 of 19 are not.*--skip-bad") as caught:
        prepare(spoilt, tmp_path / "corpus", Plan())
    reasons = (
        "id00000/text.wav.*decodable;id00001/00000.wav.*cut off;id00001/one.wav.*louder;id00001/silence.wav.*louder"
    )
    for line, reason in zip(caught.value.lines, reasons.split(";"), strict=True):
        assert re.search(reason, line)
    assert not (tmp_path / "corpus").exists()
    prepared = prepare(spoilt, tmp_path / "corpus", Plan(skip_bad=True))
    assert prepared.bad == caught.value.lines
    assert (len(prepared.corpus.utterances), prepared.clipped, prepared.ignored) == (15, 1, 2)


@pytest.mark.parametrize(
    ("plan", "spoil", "rule"),
    [
        (Plan(speakers=9), lambda _: None, "no more than there are, but got 9, and .* has 3"),
        (Plan(speakers=1), lambda _: None, "at least 2 speakers"),
        (Plan(), lambda audio: [shutil.rmtree(audio / name) for name in ("id00000", "id00001")], "at least 2 speakers"),
        (Plan(), shutil.rmtree, "--audio must be a folder"),
        (Plan(), lambda audio: (audio / "id00001").rename(audio / "a\nb"), "printable characters"),
        (Plan(), lambda audio: (audio / "id00009").symlink_to(audio / "id00001"), "must not be a link"),
    ],
)
def test_what_makes_no_corpus_is_refused(
    audio: Path, tmp_path: Path, plan: Plan, spoil: Callable[[Path], object], rule: str
) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(UserError, match=rule):
        prepare(copy, tmp_path / "corpus", plan)
    assert not (tmp_path / "corpus").exists()


def test_what_is_there_stays(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine").touch()
    with pytest.raises(UserError, match="--out must be a new folder"):
        prepare(audio, tmp_path / "corpus", Plan())
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["mine"]
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="--out must be a new folder"):
        prepare(audio, tmp_path / "link", Plan())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_goes_on_where_it_was_stopped(
    many: Path, whole: dict[str, bytes], tmp_path: Path, signum: signal.Signals
) -> None:
    words = ("speaker", "prepare", "--audio", many, "--out", "corpus", "--workers", "2", "--test-share", "0.1")
    journal = tmp_path / ".corpus.partial" / JOURNAL
    with start(tmp_path, *words) as process:
        while not journal.exists() or not journal.read_bytes():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        workers = _children(process)
        assert len(workers) == 2
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), errors
    assert not (tmp_path / "corpus").exists()
    _wait_for_the_end_of(workers)
    before = {path.name: path.stat().st_mtime_ns for path in journal.parent.glob("uttr-*.pt")}
    finished = journal.read_text().count("\n")
    assert 0 < finished < 135
    again = run(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "corpus").glob("uttr-*.pt")}
    assert sum(before[name] == after[name] for name in before) >= finished, "what is done is not done again"
    assert files(tmp_path / "corpus") == whole


def test_a_process_that_dies_is_one_clear_line(many: Path, tmp_path: Path) -> None:
    journal = tmp_path / ".corpus.partial" / JOURNAL
    with start(tmp_path, "speaker", "prepare", "--audio", many, "--out", "corpus", "--workers", "1") as process:
        while not journal.exists() or not journal.read_bytes():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        (worker,) = _children(process)
        os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert re.fullmatch(r"error: a process must outlive what it reads, but one died, .*id00000/.*\n", errors)
    assert journal.exists(), "what is done is kept"


def _children(process: "subprocess.Popen[str]") -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], stdout=subprocess.PIPE, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for_the_end_of(pids: list[int]) -> None:
    end = time.monotonic() + 30
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < end, "workers must not outlive the process that started them"
        time.sleep(0.05)


def test_a_changed_recording_is_read_again(audio: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    (copy / "id00000" / "text.wav").write_text("no sound")
    with pytest.raises(RecordingsError):
        prepare(copy, tmp_path / "corpus", Plan())
    shutil.copy(audio / "id00002" / "00000.wav", copy / "id00001" / "00000.wav")
    shutil.copy(audio / "id00002" / "00002.wav", copy / "id00000" / "text.wav")
    (copy / "id00001" / "00002.wav").unlink()
    prepare(copy, tmp_path / "corpus", Plan())
    prepare(copy, tmp_path / "anew", Plan())
    assert files(tmp_path / "corpus") == files(tmp_path / "anew")


def test_ctrl_c_at_any_moment_leaves_no_traceback(many: Path, tmp_path: Path) -> None:
    for wait in (0.2, 1.0, 1.6, 2.2, 3.0):
        process = subprocess.Popen(
            program("speaker", "prepare", "--audio", many, "--out", "corpus", "--workers", "2"),
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was done before the signal came
        if "run_cli" not in errors and wait > 0.2:  # before that, it is Python itself that stops
            assert errors in ("Stopped by SIGINT.\n", ""), errors


def test_speakers_who_are_lost_are_named(audio: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    for path in (copy / "id00001").iterdir():
        path.write_bytes(b"no sound")
    (copy / ".hidden").mkdir()
    shutil.copy(audio / "id00000" / "00000.wav", copy / ".hidden")
    prepared = prepare(copy, tmp_path / "corpus", Plan(skip_bad=True))
    assert prepared.lost == ("id00001",)
    assert prepared.corpus.speakers == ("id00000", "id00002")
    shutil.rmtree(copy / "id00002")
    with pytest.raises(UserError, match="of only 1 a recording can be used; the first that cannot: .*id00001"):
        prepare(copy, tmp_path / "none", Plan(skip_bad=True))


def test_the_verb(audio: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "speaker", "prepare", "--audio", audio, "--out", "my corpus", "--test-share", "0.2")
    assert done.returncode == 0, done.stderr
    assert "Prepared 12 labelled and 3 test utterances of 3 speakers" in done.stdout
    assert "python -m speaker check 'my corpus'" in done.stdout
    again = run(tmp_path, "speaker", "prepare", "--audio", audio, "--out", "my corpus")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "b").mkdir()
    for name in ("a", "b"):
        shutil.copy(audio / "id00000" / "00000.wav", tmp_path / "bad" / name)
    odd = tmp_path / "bad" / "b" / os.fsdecode(b"\xff.wav")
    odd.write_text("no sound")
    refused = run(tmp_path, "speaker", "prepare", "--audio", "bad", "--out", "out")
    assert refused.returncode == 2
    assert [line.partition(":")[0] for line in refused.stderr.splitlines()][-1] == "error"
    assert refused.stderr.count("\n") == 2
    skipped = run(tmp_path, "speaker", "prepare", "--audio", "bad", "--out", "out", "--skip-bad")
    assert skipped.returncode == 0, skipped.stderr
    assert skipped.stderr.startswith("left out: ")
