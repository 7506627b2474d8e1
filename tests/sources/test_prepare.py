"""Audio to corpora, with real files, real processes and real signals."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speaker.common.errors import UserError
from speaker.data.corpus import read_mels
from speaker.data.features import log_mel, normalize_peak, trim_silence
from speaker.sources.demo import draw_voice, synthesize
from speaker.sources.extraction import JOURNAL, _extract, extract_all
from speaker.sources.prepare import PrepareOptions, RecordingsError, _find_level, prepare
from speaker.sources.recordings import find_recordings
from tests.helpers import environment, program, refused, start
from tests.warm import run_warm


def write_audio(folder: Path, speakers: int = 3, each: int = 5, depth: str = "") -> Path:
    """Write recordings of invented speakers: wav and FLAC, below `speaker/` or `speaker/<depth>/`."""
    for speaker in range(speakers):
        here = folder / f"id{speaker:05d}" / depth
        here.mkdir(parents=True)
        voice = draw_voice(f"prepare/{speaker}")
        for number in range(each):
            ending = ".flac" if number % 2 else ".wav"
            soundfile.write(
                here / f"{number:05d}{ending}",
                synthesize(voice, f"{speaker}/{number}").numpy(),
                16_000,
            )
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
    return files(
        prepare(
            many, tmp_path_factory.mktemp("whole") / "corpus", PrepareOptions(test_share=0.1)
        ).corpus.folder
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_features_are_the_homeworks(audio: Path, tmp_path: Path) -> None:
    prepared = prepare(audio, tmp_path / "corpus", PrepareOptions())
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


@pytest.mark.slow
def test_the_same_corpus_by_any_number_of_processes(audio: Path, tmp_path: Path) -> None:
    one = prepare(audio, tmp_path / "one", PrepareOptions(test_share=0.2)).corpus
    two = prepare(audio, tmp_path / "two", PrepareOptions(test_share=0.2, workers=2)).corpus
    assert files(one.folder) == files(two.folder)


@pytest.mark.slow
def test_a_share_is_held_out_with_its_labels_beside_it(audio: Path, tmp_path: Path) -> None:
    corpus = prepare(audio, tmp_path / "corpus", PrepareOptions(test_share=0.4)).corpus
    assert (len(corpus.utterances), len(corpus.test)) == (9, 6)
    everything = prepare(audio, tmp_path / "all", PrepareOptions()).corpus
    speaker = {
        each.feature_path: everything.speakers[each.speaker or 0] for each in everything.utterances
    }
    rows = list(csv.reader((corpus.folder / "testlabels.csv").read_text().splitlines()))
    assert rows == [
        ["Id", "Category"],
        *([each.feature_path, speaker[each.feature_path]] for each in corpus.test),
    ]
    other = prepare(audio, tmp_path / "other", PrepareOptions(test_share=0.4, seed=1)).corpus
    assert {each.feature_path for each in other.test} != {each.feature_path for each in corpus.test}


@pytest.mark.slow
def test_voxcelebs_tree_and_a_sample_of_its_speakers(tmp_path: Path) -> None:
    audio = write_audio(tmp_path / "audio", speakers=5, each=1, depth="video1")
    for speaker in sorted(audio.iterdir()):
        shutil.copytree(speaker / "video1", speaker / "video2")
    names = [
        prepare(audio, tmp_path / f"{seed}", PrepareOptions(speakers=3, seed=seed)).corpus.speakers
        for seed in range(3)
    ]
    assert all(len(set(each)) == 3 for each in names)
    assert len(set(names)) > 1, "the seed must matter"
    corpus = prepare(audio, tmp_path / "again", PrepareOptions(speakers=3, seed=2)).corpus
    assert corpus.speakers == names[2]
    assert len(corpus.utterances) == 6, "both videos of each"


@pytest.mark.slow
def test_what_cannot_be_used_is_named_and_left_out_only_on_request(
    audio: Path, tmp_path: Path
) -> None:
    spoilt = Path(shutil.copytree(audio, tmp_path / "spoilt"))
    (spoilt / "id00000" / "text.wav").write_text("no sound")
    (spoilt / "id00000" / "._00001.wav").write_text("a Mac's")
    (spoilt / "id00001" / "00000.wav").write_bytes(
        (audio / "id00001" / "00000.wav").read_bytes()[:9_000]
    )
    (spoilt / "README.txt").touch()
    soundfile.write(spoilt / "id00001" / "silence.wav", np.zeros(16_000), 16_000)
    soundfile.write(spoilt / "id00001" / "one.wav", np.ones(1), 16_000)
    soundfile.write(
        spoilt / "id00001" / "clipped.wav", np.sign(np.sin(np.arange(16_000) / 9)), 16_000
    )
    with pytest.raises(RecordingsError, match="4 of 19 are not.*--skip-bad") as caught:
        prepare(spoilt, tmp_path / "corpus", PrepareOptions())
    reasons = (
        "id00000/text.wav.*decodable;id00001/00000.wav.*cut "
        "off;id00001/one.wav.*louder;id00001/silence.wav.*louder"
    )
    for line, reason in zip(caught.value.lines, reasons.split(";"), strict=True):
        assert re.search(reason, line)
    assert not (tmp_path / "corpus").exists()
    prepared = prepare(spoilt, tmp_path / "corpus", PrepareOptions(skip_bad=True))
    assert prepared.bad == caught.value.lines
    assert (len(prepared.corpus.utterances), prepared.clipped, prepared.ignored) == (15, 1, 2)


@pytest.mark.parametrize(
    ("options", "spoil", "rule"),
    [
        (
            PrepareOptions(speakers=9),
            lambda _: None,
            "no more than there are, but got 9, and .* has 3",
        ),
        (PrepareOptions(speakers=1), lambda _: None, "at least 2 speakers"),
        (
            PrepareOptions(),
            lambda audio: [shutil.rmtree(audio / name) for name in ("id00000", "id00001")],
            "at least 2 speakers",
        ),
        (PrepareOptions(), shutil.rmtree, "--audio must be a folder"),
        (
            PrepareOptions(),
            lambda audio: (audio / "id00001").rename(audio / "a\nb"),
            "printable characters",
        ),
        (
            PrepareOptions(),
            lambda audio: (audio / "id00009").symlink_to(audio / "id00001"),
            "must not be a link",
        ),
    ],
)
def test_what_makes_no_corpus_is_refused(
    audio: Path, tmp_path: Path, options: PrepareOptions, spoil: Callable[[Path], object], rule: str
) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(UserError, match=rule):
        prepare(copy, tmp_path / "corpus", options)
    assert not (tmp_path / "corpus").exists()


def test_what_is_there_stays(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine").touch()
    with pytest.raises(UserError, match="--out must be a new folder"):
        prepare(audio, tmp_path / "corpus", PrepareOptions())
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["mine"]
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="--out must be a new folder"):
        prepare(audio, tmp_path / "link", PrepareOptions())


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_goes_on_where_it_was_stopped(
    many: Path, whole: dict[str, bytes], tmp_path: Path, signum: signal.Signals
) -> None:
    words = (
        "speaker",
        "prepare",
        "--audio",
        many,
        "--out",
        "corpus",
        "--workers",
        "2",
        "--test-share",
        "0.1",
    )
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
    again = run_warm(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "corpus").glob("uttr-*.pt")}
    assert sum(before[name] == after[name] for name in before) >= finished, (
        "what is done is not done again"
    )
    assert files(tmp_path / "corpus") == whole


def test_a_process_that_dies_is_one_clear_line(many: Path, tmp_path: Path) -> None:
    journal = tmp_path / ".corpus.partial" / JOURNAL
    with start(
        tmp_path, "speaker", "prepare", "--audio", many, "--out", "corpus", "--workers", "1"
    ) as process:
        while not journal.exists() or not journal.read_bytes():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        (worker,) = _children(process)
        os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert re.fullmatch(
        r"error: a process must outlive what it reads, but one died, .*id00000/.*\n", errors
    )
    assert journal.exists(), "what is done is kept"


def _children(process: "subprocess.Popen[str]") -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main"], stdout=subprocess.PIPE, check=False
    )
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


@pytest.mark.slow
def test_a_changed_recording_is_read_again(audio: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    (copy / "id00000" / "text.wav").write_text("no sound")
    with pytest.raises(RecordingsError):
        prepare(copy, tmp_path / "corpus", PrepareOptions())
    shutil.copy(audio / "id00002" / "00000.wav", copy / "id00001" / "00000.wav")
    shutil.copy(audio / "id00002" / "00002.wav", copy / "id00000" / "text.wav")
    (copy / "id00001" / "00002.wav").unlink()
    prepare(copy, tmp_path / "corpus", PrepareOptions())
    prepare(copy, tmp_path / "anew", PrepareOptions())
    assert files(tmp_path / "corpus") == files(tmp_path / "anew")


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_no_traceback(many: Path, tmp_path: Path) -> None:
    stops = 0
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
        stops += 1
        if "run_cli" not in errors and wait > 0.2:  # before that, it is Python itself that stops
            assert errors in ("Stopped by SIGINT.\n", ""), errors
    assert stops > 1, "nothing was stopped but Python itself"


def test_speakers_who_are_lost_are_named(audio: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    for path in (copy / "id00001").iterdir():
        path.write_bytes(b"no sound")
    (copy / ".hidden").mkdir()
    shutil.copy(audio / "id00000" / "00000.wav", copy / ".hidden")
    prepared = prepare(copy, tmp_path / "corpus", PrepareOptions(skip_bad=True))
    assert prepared.lost == ("id00001",)
    assert prepared.corpus.speakers == ("id00000", "id00002")
    shutil.rmtree(copy / "id00002")
    with pytest.raises(
        UserError, match="of only 1 a recording can be used; the first that cannot: .*id00001"
    ):
        prepare(copy, tmp_path / "none", PrepareOptions(skip_bad=True))


@pytest.mark.slow
def test_the_verb(audio: Path, tmp_path: Path) -> None:
    done = run_warm(
        tmp_path,
        "speaker",
        "prepare",
        "--audio",
        audio,
        "--out",
        "my corpus",
        "--test-share",
        "0.2",
    )
    assert done.returncode == 0, done.stderr
    assert "Prepared 12 labelled and 3 test utterances of 3 speakers" in done.stdout
    assert "python -m speaker check 'my corpus'" in done.stdout
    again = run_warm(tmp_path, "speaker", "prepare", "--audio", audio, "--out", "my corpus")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "b").mkdir()
    for name in ("a", "b"):
        shutil.copy(audio / "id00000" / "00000.wav", tmp_path / "bad" / name)
    odd = tmp_path / "bad" / "b" / os.fsdecode(b"\xff.wav")
    odd.write_text("no sound")
    refused = run_warm(tmp_path, "speaker", "prepare", "--audio", "bad", "--out", "out")
    assert refused.returncode == 2
    assert [line.partition(":")[0] for line in refused.stderr.splitlines()][-1] == "error"
    assert refused.stderr.count("\n") == 2
    skipped = run_warm(
        tmp_path, "speaker", "prepare", "--audio", "bad", "--out", "out", "--skip-bad"
    )
    assert skipped.returncode == 0, skipped.stderr
    assert skipped.stderr.startswith("left out: ")


def lay(folder: Path, source: Path, *paths: str) -> Path:
    """Copy a recording to each of these paths."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / path)
    return folder


@pytest.fixture(scope="module")
def recording(audio: Path) -> Path:
    return audio / "id00000" / "00000.wav"


def test_a_surprise_is_its_recordings_alone(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(_waveform: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("speaker.sources.extraction.trim_silence", surprise)
        extraction = _extract(recording, tmp_path / "a.pt")
    rule = "a recording must be readable, but reading it failed (ZeroDivisionError: a bug)"
    assert extraction.error == f"{recording}: {rule}; convert it to wav or flac, or remove it"
    with pytest.raises(FileNotFoundError):  # a full disk, say, is not the recording's fault
        _extract(recording, tmp_path / "missing" / "a.pt")


def test_an_ending_that_is_unknown_is_read_by_what_the_file_is(
    recording: Path, tmp_path: Path
) -> None:
    shutil.copy(recording, tmp_path / "a.of-no-format")
    assert _extract(tmp_path / "a.of-no-format", tmp_path / "a.pt").disguised == "WAV"
    (tmp_path / "b.of-no-format").write_bytes(b"nothing that is known" * 9)
    error = _extract(tmp_path / "b.of-no-format", tmp_path / "b.pt").error
    assert "begins with b'nothing that" in error


def test_24_bits_at_any_rate_make_a_corpus(tmp_path: Path) -> None:
    for speaker in ("anna", "ben"):
        (tmp_path / "audio" / speaker).mkdir(parents=True)
        waveform = synthesize(draw_voice(speaker), speaker).numpy()
        for subtype, name in (("PCM_24", "a.wav"), ("PCM_32", "b.wav"), ("PCM_24", "c.flac")):
            soundfile.write(tmp_path / "audio" / speaker / name, waveform, 22_050, subtype=subtype)
    prepared = prepare(tmp_path / "audio", tmp_path / "corpus", PrepareOptions())
    assert (len(prepared.corpus.utterances), prepared.bad, prepared.warnings) == (6, (), ())


LIBRISPEECH = (
    "train-clean-100/19/198/a.wav", "train-clean-100/26/495/a.wav", "dev-clean/84/121123/a.wav",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paths", "typed", "speakers"),
    [
        (LIBRISPEECH, "--audio 'my audio' --out corpus --level 2", ("19", "26", "84")),
        (
            ("dev/aac/id1/v/a.wav", "dev/aac/id2/v/a.wav", "test/aac/id3/v/a.wav"),
            "--audio 'my audio' --out corpus --level 3",
            ("id1", "id2", "id3"),
        ),
        (
            ("wav/id1/v/a.wav", "wav/id2/v/a.wav"),
            "--audio 'my audio/wav' --out corpus",
            ("id1", "id2"),
        ),
        (("x/id1/a.wav", "x/id2/a.wav"), "--audio 'my audio/x' --out corpus", ("id1", "id2")),
        (
            ("train/anna/a.wav", "train/ben/a.wav", "test/anna/b.wav"),
            "--audio 'my audio' --out corpus --level 2",
            ("anna", "ben"),
        ),
        (
            ("room1/19/198/a.wav", "room2/26/495/a.wav"),
            "--audio 'my audio' --out corpus --level 2",
            ("19", "26"),
        ),
    ],
)
def test_folders_that_are_not_the_speakers_are_refused_with_what_to_type(
    recording: Path,
    tmp_path: Path,
    paths: tuple[str, ...],
    typed: str,
    speakers: tuple[str, ...],
) -> None:
    lay(tmp_path / "my audio", recording, *paths)
    one = run_warm(tmp_path, "speaker", "prepare", "--audio", "my audio", "--out", "corpus")
    assert (one.returncode, one.stderr.count("\n"), one.stdout) == (2, 1, "")
    commands = re.findall("`python -m (.*?)`", one.stderr)
    assert commands == [
        f"speaker prepare {typed}",
        "speaker prepare --audio 'my audio' --out corpus --level 1",
    ]
    done = run_warm(tmp_path, *shlex.split(commands[0]))
    assert done.returncode == 0, done.stderr
    mapping = json.loads((tmp_path / "corpus" / "mapping.json").read_text())
    assert tuple(mapping["speaker2id"]) == speakers


def test_the_command_to_type_keeps_the_other_flags(recording: Path, tmp_path: Path) -> None:
    lay(tmp_path / "audio", recording, *LIBRISPEECH)
    options = PrepareOptions(speakers=2, test_share=0.1, seed=3, skip_bad=True)
    text = refused(lambda: prepare(tmp_path / "audio", tmp_path / "corpus", options))
    flags = "--speakers 2 --test-share 0.1 --seed 3 --level {} --skip-bad`"
    assert flags.format(2) in text
    assert flags.format(1) in text


def test_folders_that_hold_no_speakers_are_refused(recording: Path, tmp_path: Path) -> None:
    lay(tmp_path / "audio", recording, "train/a.wav", "test/a.wav")
    text = refused(lambda: prepare(tmp_path / "audio", tmp_path / "corpus", PrepareOptions()))
    assert "like parts of a data set: test, train; put each speaker's recordings into a" in text
    insisted = prepare(tmp_path / "audio", tmp_path / "corpus", PrepareOptions(level=1))
    assert insisted.corpus.speakers == ("test", "train")


@pytest.mark.parametrize(
    ("paths", "level"),
    [
        (("anna/a", "ben/a"), 1),
        (("id1/v1/a", "id1/v2/a", "id2/v3/a"), 1),
        (("anna/train/a", "anna/test/a", "ben/train/a"), 1),
        (("anna/monday/a", "anna/b", "ben/deep/er/still/c", "ben/d"), 1),
        (("valerie/a", "devon/a"), 1),
        (("test/a", "anna/a"), 1),
        (("1/a", "2/a"), 1),
        (("A/a", "M/a"), 1),
        (("anna/monday/far/a", "ben/monday/near/a"), 2),  # may be wrong: --level 1 insists
        (("TIMIT/TRAIN/DR1/anna/a", "TIMIT/TEST/DR2/ben/a"), 4),
        (("wav/train/S1/a", "wav/dev/S2/a"), 3),
        (("wav48_silence_trimmed/p1/a", "wav48_silence_trimmed/p2/a"), 2),
        (("vox1_dev_wav/wav/id1/v/a", "vox1_test_wav/wav/id2/v/a"), 3),
        (("train/a", "test/a"), 0),
        (("anna/a",), 0),
    ],
)
def test_the_level_of_the_speakers(paths: tuple[str, ...], level: int) -> None:
    assert _find_level([path.split("/")[:-1] for path in paths]) == level


def test_what_is_not_read_is_named(recording: Path, tmp_path: Path) -> None:
    audio = lay(tmp_path / "audio", recording, "anna/a.wav", "ben/a.WAV")
    (audio / "carol").mkdir()
    waveform, rate = soundfile.read(recording)
    soundfile.write(audio / "carol" / "a.opus", waveform, rate, format="OGG", subtype="OPUS")
    lay(audio, recording, "dave/a.xyz", "dave/b.xyz", "dave/notes.txt", "anna/.b.wav", "README")
    (audio / "eve").mkdir()
    done = run_warm(tmp_path, "speaker", "prepare", "--audio", "audio", "--out", "corpus")
    assert done.returncode == 0, done.stderr
    assert "3 labelled and 0 test utterances of 3 speakers" in done.stdout
    assert "ignored 5 other files (.xyz 2, " in done.stdout
    assert done.stderr.startswith(
        "warning: each speaker's folder should hold recordings, but 2 do not, and are left out: "
        "dave (.xyz 2, .txt 1), eve (empty); what is read ends in .wav, "
    )
    assert done.stderr.count("\n") == 1
    shutil.rmtree(audio / "ben")
    shutil.rmtree(audio / "carol")
    text = refused(lambda: prepare(audio, tmp_path / "none", PrepareOptions()))
    assert "has 1 folders with recordings, and 5 other files (.xyz 2, " in text


def test_one_name_in_two_unicode_forms_is_one_speaker(recording: Path, tmp_path: Path) -> None:
    name = "Jos\u00e9"
    mac = unicodedata.normalize("NFD", name)
    audio = lay(tmp_path / "audio", recording, f"{name}/a.wav", f"{mac}/b.wav", "ben/a.wav")
    prepared = prepare(audio, tmp_path / "corpus", PrepareOptions())
    assert prepared.corpus.speakers == (name, "ben")
    assert [each.speaker for each in prepared.corpus.utterances] == [0, 0, 1]
    assert "folders 'Jose\\u0301' and 'Jos\\xe9' have one name in two" in prepared.warnings[0]
    shutil.rmtree(audio / name)
    assert {each.speaker for each in find_recordings(audio).recordings} == {mac, "ben"}


def test_a_lower_sampling_rate_is_warned_of_when_resumed_too(tmp_path: Path) -> None:
    rates = {"anna": 16_000, "ben": 44_100, "carol": 8_000, "dave": 16_000}
    for speaker, rate in rates.items():
        (tmp_path / "audio" / speaker).mkdir(parents=True)
        waveform = synthesize(draw_voice(speaker), speaker).numpy()
        for name in ("a", "b"):
            soundfile.write(tmp_path / "audio" / speaker / f"{name}.wav", waveform, rate)
    bad = tmp_path / "audio" / "dave" / "c.wav"
    bad.touch()
    with pytest.raises(RecordingsError):
        prepare(tmp_path / "audio", tmp_path / "corpus", PrepareOptions())
    bad.unlink()
    journal = (tmp_path / ".corpus.partial" / JOURNAL).read_text()
    assert journal.count("\n") == 8
    (line,) = prepare(tmp_path / "audio", tmp_path / "corpus", PrepareOptions()).warnings
    assert "1 of 4 have less than the 16,000 Hz of the others: carol at 8,000 Hz; above 4" in line
    shutil.rmtree(tmp_path / "audio" / "carol")
    assert prepare(tmp_path / "audio", tmp_path / "without", PrepareOptions()).warnings == ()


def test_what_an_older_version_prepared_is_kept(audio: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    (copy / "id00000" / "bad.wav").touch()
    with pytest.raises(RecordingsError):
        prepare(copy, tmp_path / "corpus", PrepareOptions())
    journal = tmp_path / ".corpus.partial" / JOURNAL
    old = re.sub(
        r', "rate": \d+, "disguised": "[^"]*"|"sha256": "[0-9a-f]*", |, "sha256": "[0-9a-f]*"',
        "",
        journal.read_text(),
    )
    assert "sha256" not in old
    assert old.count("error") == 15
    assert "rate" not in old
    journal.write_text(old)
    before = {path.name: path.stat().st_mtime_ns for path in journal.parent.glob("uttr-*.pt")}
    prepared = prepare(copy, tmp_path / "corpus", PrepareOptions(skip_bad=True))
    after = {path.name: path.stat().st_mtime_ns for path in prepared.corpus.folder.glob("uttr*")}
    assert before == after
    assert prepared.warnings == ()


@pytest.mark.slow
def test_a_damaged_line_of_the_journal_costs_that_recording_alone(
    audio: Path, tmp_path: Path
) -> None:
    whole = prepare(audio, tmp_path / "whole", PrepareOptions()).corpus.folder
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    (copy / "id00000" / "bad.wav").touch()
    with pytest.raises(RecordingsError):
        prepare(copy, tmp_path / "corpus", PrepareOptions())
    (copy / "id00000" / "bad.wav").unlink()
    journal = tmp_path / ".corpus.partial" / JOURNAL
    lines = journal.read_bytes().splitlines()
    assert len(lines) == 15
    other_type, other_number = (
        lines[5].replace(b"16000", b'"x"'),
        lines[6].replace(b'"frames": ', b'"frames": 1'),
    )
    damage = (b"", b"{", b"[]", b"\xff\xfe", lines[4][:-9], other_type, other_number)
    lines[: len(damage)] = damage
    journal.write_bytes(b"\n".join(lines))
    before = {path.name: path.stat().st_mtime_ns for path in journal.parent.glob("uttr-*.pt")}
    folder = prepare(copy, tmp_path / "corpus", PrepareOptions()).corpus.folder
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("uttr-*.pt")}
    assert sum(before[name] == after[name] for name in before) == 15 - len(damage)
    assert files(folder) == files(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to(path.name),
        lambda path: (path.touch(), os.truncate(path, 3 << 30)),
    ],
    ids=("pipe", "loop", "sparse"),
)
def test_a_journal_that_is_none_is_made_anew(
    audio: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    partial = tmp_path / ".corpus.partial"
    partial.mkdir()
    make(partial / JOURNAL)
    recordings = find_recordings(audio).recordings[:2]
    done = extract_all(audio, partial, recordings, 1)
    assert [each.error for each in done.values()] == ["", ""]
    lines = (partial / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["recording"]["path"] for line in lines] == [
        each.path for each in recordings
    ]
    assert extract_all(audio, partial, recordings, 1) == done


def test_recordings_under_another_formats_name_are_named(audio: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(audio, tmp_path / "copy"))
    for speaker in ("id00000", "id00001"):
        (copy / speaker / "00001.flac").rename(copy / speaker / "x.wav")
    prepared = prepare(copy, tmp_path / "corpus", PrepareOptions())
    (line,) = prepared.warnings
    assert "2 recordings named .wav are FLAC, and were read as that: id00000/x.wav, id0" in line
    assert len(prepared.corpus.utterances) == 15


@pytest.mark.slow
def test_a_link_to_itself_is_one_clear_line(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for words in (("loop", "corpus"), ("loop/audio", "corpus"), (audio, "loop"), (audio, "loop/x")):
        done = run_warm(tmp_path, "speaker", "prepare", "--audio", words[0], "--out", words[1])
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: ")
