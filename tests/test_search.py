"""search.py, train_trial.py and the verbs as a user runs them: from the shell, to the end,
and stopped on the way.
"""

import csv
import http.client
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from experiments.analysis.leaderboard import best_runs
from experiments.tracking.store import TrackingStore
from speaker.common.devices import find_precision
from speaker.model.saved_model import WEIGHTS
from tests.helpers import KILLS, STUDY, assert_whole, environment, program, run, start, write_corpus
from tests.servers import answers, free_port, serve, stop
from tests.warm import run_warm

pytestmark = pytest.mark.slow

SEARCH = ("search.py", "--data", "corpus", "--steps", "5", "--trials")


def test_from_corpus_to_predictions(home: Path) -> None:
    done = run(home, *SEARCH, 3)
    assert done.returncode == 0, done.stderr
    assert "Study homework-corpus: 3 trials of 5 steps" in done.stdout
    assert re.search(r"^#0 .* 1/3  \d\d:\d\d  best$", done.stdout, re.MULTILINE), done.stdout
    assert (
        "Ended by --trials after 3 of 3 trials; a larger --trials goes on.\nTrained" in done.stdout
    )
    assert re.search(r"first and are trained whole: d80 h2 L1 sigmoid for about .* % of the time",
                     " ".join(done.stdout.split()))  # fmt: skip
    table = done.stdout.partition("rank")[2]
    assert table.count("homework-baseline") == table.count("homework-edited") == 1
    assert_whole(home, 3)
    again = run(home, *SEARCH, 3)
    assert again.returncode == 0, again.stderr
    assert "A step takes" not in again.stdout
    assert again.stdout.partition("rank")[2] == table

    commands = re.findall(r"^  python -m (.+)$", done.stdout, re.MULTILINE)
    assert [command.split()[:2] for command in commands] == [
        ["experiments", "promote"], ["speaker", "predict"], ["experiments", "ui"],
    ], "the last one stays until Ctrl-C"  # fmt: skip
    for command in commands[:-1]:
        said = run(home, *command.split())
        assert said.returncode == 0, said.stderr
    rows = list(csv.reader((home / "submission.csv").read_text().splitlines()))
    assert rows[0] == ["Id", "Category"]
    assert len(rows) == 6
    assert {row[1] for row in rows[1:]} <= {"id00000", "id00001", "id00002"}
    note = json.loads((home / "submission.csv.json").read_text())
    (model,) = note["models"]
    assert (model["model"], model["version"]) == ("speaker-classifier", "1")
    assert note["code"]["version.torch"]

    (report,) = re.findall(r"^Report: (\S+)$", done.stdout, re.MULTILINE)
    page = (home / report).read_text()
    assert page.count("<tr><td>") >= 3, "a line a trial"
    said = run(home, "experiments", "report", "--study", STUDY)
    assert said.returncode == 0, said.stderr
    assert said.stdout == f"Wrote {STUDY}.html.\n"
    assert (home / f"{STUDY}.html").read_text() == page

    voted = run(
        home,
        "speaker",
        "predict",
        "--data",
        "corpus",
        "--ensemble",
        "2",
        "--study",
        STUDY,
        "--out",
        "two.csv",
    )
    assert voted.returncode == 0, voted.stderr
    gain = r"5 validation utterances, .*: best [01]\.\d+, vote of 2 [01]\.\d+, a gain of [+-]\d+\.\d\d points"
    assert re.search(gain, voted.stdout), voted.stdout
    note = json.loads((home / "two.csv.json").read_text())
    assert [each["run"] for each in note["models"]] == best_runs(
        TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db"), STUDY, 2
    )
    assert len(note["validation"]["singles"]) == 2
    (weights,) = (home / "mlruns" / "artifacts" / "models").rglob(WEIGHTS)
    weights.unlink()
    compared = run_warm(home, "experiments", "compare", "--study", STUDY)
    assert compared.returncode == 0
    assert compared.stderr.startswith("warning: version 1 of speaker-classifier is broken: ")


def kill_at_random(home: Path, words: tuple[object, ...], after: str) -> int:
    """Start a command KILLS times and kill it within two seconds after a line; return how often it
    was still alive.
    """
    draw = random.Random(0)  # noqa: S311  # moments, not secrets
    kills = 0
    for _ in range(KILLS):
        process = start(home, *words)
        for line in process.stdout or ():
            if line.startswith(after):
                break
        time.sleep(draw.uniform(0, 2))
        process.kill()
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
    return kills


def test_four_edits_say_what_each_of_them_earned_however_often_it_is_killed(tmp_path: Path) -> None:
    """On a corpus whose speakers a wide model or ReLU tells apart, and neither in vain."""
    write_corpus(tmp_path / "corpus", speakers=10, per_speaker=20, test=5, frames=(2, 4))
    words = ("search.py", "--data", "corpus", "--steps", 5, "--preset", "four-edits")
    assert kill_at_random(tmp_path, words, "Study four-edits-corpus: 16 trials of 5 steps")
    done = run_warm(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    said = run_warm(
        tmp_path, "experiments", "effects", "--study", "four-edits-corpus", "--figure", "x.png"
    )
    assert said.returncode == 0, said.stderr
    table = said.stdout.partition("Drew")[0].strip()
    assert table in done.stdout
    shares = {
        line.split()[0]: float(line.split()[1])
        for line in table.splitlines()
        if re.match(r"(d_model|nhead|num_layers|activation) +[+-]", line)
    }
    total = re.search(r"^all four +([+-][\d.]+)", table, re.MULTILINE)
    assert total
    assert len(shares) == 4
    assert sum(shares.values()) == pytest.approx(float(total[1]), abs=0.25)
    assert shares["d_model"] > 10
    assert shares["activation"] > 10
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    runs = TrackingStore(f"sqlite:///{tmp_path}/mlruns/mlflow.db").runs("tags.kind = 'trial'")
    assert [run.info.status for run in runs] == ["FINISHED"] * 16


def test_the_best_are_confirmed_on_fresh_seeds_however_often_it_is_killed(home: Path) -> None:
    words = (*SEARCH, 4, "--confirm", 2, "--seeds", 2)
    assert kill_at_random(home, words, "The best 2 points")
    done = run_warm(home, *words)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("behind the best")[2].partition("Report:")[0]
    assert "is best of 2. On new utterances expect" in table, done.stdout
    runs = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db").runs("tags.preset = 'finalist'")
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert Counter(run.data.tags["replicate"] for run in runs) == {"0": 2, "1": 2}
    assert len({run.data.params["seed"] for run in runs}) == 2
    study = {run.data.tags["study"] for run in runs}.pop()
    searched = ("--study", study.partition("-confirm-")[0])
    again = run_warm(
        home,
        "experiments",
        "confirm",
        *searched,
        "--data",
        "corpus",
        "--top",
        2,
        "--seeds",
        2,
    )
    assert again.stdout.partition("behind the best")[2] == table, again.stderr
    promoted = run_warm(home, "experiments", "promote", *searched)
    assert f"The point that {study} found best" in promoted.stdout, promoted.stderr
    point = re.search(r"champion of .* is version 1: (.*?), whole", promoted.stdout)
    assert point and f"{point[1]} is best of 2" in table  # noqa: PT018
    assert table in run_warm(home, *words).stdout


def test_one_point_is_tracked_like_a_trial_and_promotes(home: Path) -> None:
    done = run_warm(home, "train_trial.py", "--data", "corpus", "--preset", "homework-edited", "--d-model", "32",
               "--num-layers", "2", "--steps", "10", "--batch-size", "8", "--norm-first")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for pattern in (
        r"Train +[\d.]+ step/s +accuracy=",
        r"Valid +\d+ uttr/s",
        r"Step \d+, best model saved. \(accuracy=0\.\d{4}\)",
    ):
        assert re.search(pattern, done.stdout), done.stdout
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    (tracked,) = store.runs("tags.kind = 'trial'")
    assert tracked.info.run_name == "d32 h16 L2 relu pre-norm"
    assert "preset" not in tracked.data.tags, "it was changed"
    assert tracked.data.params["norm_first"] == "True"
    assert tracked.data.params["warmup_steps"] == "1"
    assert not (home / "mlruns" / "optuna.db").exists()
    promoted = run_warm(home, "experiments", "promote", "--run", tracked.info.run_id)
    assert promoted.returncode == 0, promoted.stderr
    assert "d32 h16 L2 relu" in promoted.stdout


def test_a_killed_training_goes_on_to_the_same_end(home: Path) -> None:
    """Kill one training again and again with SIGKILL, let it end,
    and compare it with one that nothing disturbed.
    """
    wait = random.Random(0)  # noqa: S311  # moments, not secrets
    words = [
        "train_trial.py",
        "--data",
        "corpus",
        "--steps",
        str(1000 + 300 * KILLS),
        "--valid-every",
        "150",
    ]
    assert run_warm(home, *words).returncode == 0
    run_id = ""
    for _ in range(KILLS):
        process = start(home, *words, *(["--resume", run_id] if run_id else []))
        assert process.stdout is not None
        assert process.stdout.readline() == "Runs are kept in mlruns/mlflow.db.\n"
        line = process.stdout.readline()
        run_id = run_id or line.split()[1].rstrip(".")
        assert line.rstrip().endswith(f"--resume {run_id}"), line
        while "step=" not in process.stdout.readline():
            pass
        time.sleep(wait.uniform(0.5, 1.5))
        process.kill()
        process.communicate()
        assert process.returncode == -9, "it ended before it could be killed"
    (checkpoint,) = (home / "mlruns" / "checkpoints").iterdir()
    other = run_warm(home, *words, "--resume", run_id, "--lr", "0.5")
    assert other.returncode == 2
    assert "is of another training: lr is 0.001 there and 0.5 here; give the flags" in other.stderr
    larger = run_warm(home, *words, "--resume", run_id, "--d-model", "16")
    assert "is of another training: d_model is 80 there and 16 here" in larger.stderr
    other_precision = (
        "bf16" if find_precision("auto", torch.device("cpu")) == torch.float32 else "fp32"
    )
    lower = run_warm(home, *words, "--resume", run_id, "--precision", other_precision)
    assert lower.returncode == 2
    assert "precision is " in lower.stderr
    whole = checkpoint.read_bytes()
    partial = checkpoint.with_name(f".{checkpoint.name}.12345.partial")
    partial.write_bytes(whole[:500])  # as a kill in the middle of writing leaves it
    checkpoint.unlink()
    write_corpus(home / "other", speakers=3, per_speaker=14, frames=(4, 9), seed=1)
    foreign = run_warm(home, *words[:2], "other", *words[3:], "--resume", run_id)
    assert foreign.returncode == 2
    assert "is of another training: corpus.digest is " in foreign.stderr
    checkpoint.write_bytes(whole[:1000])
    cut = run_warm(home, *words, "--resume", run_id)
    assert cut.returncode == 2
    assert "must be a whole checkpoint, but is damaged" in cut.stderr
    checkpoint.write_bytes(whole)
    done = run_warm(home, *words, "--resume", run_id)
    assert done.returncode == 0, done.stderr
    assert not checkpoint.exists()
    assert not partial.exists()

    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    one, other = store.runs("tags.kind = 'trial'")
    assert other.info.run_id == run_id
    assert one.data.tags["weights.sha256"] == other.data.tags["weights.sha256"]
    for key in (name for name in one.data.metrics if not name.startswith(("speed/", "total/sec"))):
        rows = [
            sorted(
                (row.step, row.value)
                for row in store.client.get_metric_history(each.info.run_id, key)
            )
            for each in (one, other)
        ]
        assert rows[0] == rows[1], key
    again = run_warm(home, *words, "--resume", run_id)
    assert again.returncode == 2
    assert "must name a run that was stopped, but" in again.stderr


def test_a_point_that_fails_says_so(home: Path) -> None:
    done = run_warm(
        home,
        "train_trial.py",
        "--data",
        "corpus",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--lr",
        "1e30",
    )
    assert done.returncode == 1, done.stderr
    assert "collapsed: whole -, crops -" in done.stdout
    assert "promote" not in done.stdout


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda signum: signum.name
)
def test_a_stopped_search_goes_on(home: Path, signum: signal.Signals) -> None:
    """Stop it in mid-trial, a few times, at moments that differ, and let it end."""
    wait = random.Random(int(signum))  # noqa: S311  # moments, not secrets
    stops = 0
    for _ in range(KILLS):
        process = start(home, *SEARCH, 8)
        for line in process.stdout or ():
            if line.startswith("Study"):
                break
        time.sleep(wait.uniform(0, 1.5))
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was done before the signal came
        stops += 1
        assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum), errors
        if signum != signal.SIGKILL:
            finished, stopped = errors.strip().splitlines()
            assert re.fullmatch(
                r"\d+ trials? finished; run the same command to resume.", finished
            ), errors
            assert stopped == f"Stopped by {signum.name}."
        if signum != signal.SIGKILL:
            assert list((home / "mlruns" / "artifacts").rglob("report.html")), (
                "of a stopped one, too"
            )
    assert stops
    done = run_warm(home, *SEARCH, 8)
    assert done.returncode == 0, done.stderr
    assert_whole(home, 8)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_search_whose_terminal_closes_is_stopped_and_goes_on(home: Path, jobs: int) -> None:
    command = program(*SEARCH, 30, "--jobs", jobs)
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(home)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as it is unless nohup started the tests
        os.execve(command[0], command, environment())  # noqa: S606  # it is our own
    shown = b""
    while b"Study" not in shown:
        shown += os.read(terminal, 65_536)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    assert store.runs("attributes.status = 'RUNNING'") == []
    (parent,) = store.study_runs(STUDY)
    assert parent.data.tags["state"] == "interrupted"
    started = len(store.runs("tags.kind = 'trial'"))
    done = run_warm(home, *SEARCH, max(1, started))
    assert done.returncode == 0, done.stderr
    assert_whole(home, max(1, started))


def test_under_nohup_a_search_outlives_its_terminal(home: Path) -> None:
    process = subprocess.Popen(
        ["nohup", *program(*SEARCH, 2)], cwd=home, env=environment(), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    while "Study" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert_whole(home, 2)


def test_two_first_starts_at_once_share_the_work(home: Path) -> None:
    processes = [start(home, *SEARCH, 5) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert "rank" in output
    assert_whole(home, 5)


def test_workers_share_a_study_on_postgresql(home: Path, postgres: str) -> None:
    processes = [start(home, *SEARCH, 5, "--storage", postgres) for _ in range(2)]
    while not processes[0].stdout.readline().startswith("Study"):  # type: ignore[union-attr]
        pass
    time.sleep(1)
    processes[0].kill()
    processes[0].communicate()
    _, errors = processes[1].communicate(timeout=200)
    assert processes[1].returncode == 0, errors
    assert_whole(home, 5, postgres)


def test_the_ui_serves_on_loopback_until_it_is_stopped(home: Path) -> None:
    assert (
        run_warm(
            home, "train_trial.py", "--data", "corpus", "--steps", "1", "--batch-size", "8"
        ).returncode
        == 0
    )
    port = free_port()
    with start(home, "experiments", "ui", "--port", port) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith(
                f"Best trials, in MLflow's own columns: http://127.0.0.1:{port}/#"
            )
            assert "workflowType=machine_learning" in line
            assert answers(port, within=0), "links are printed when the server answers"
            assert [
                status_of_root(port, host) for host in (f"127.0.0.1:{port}", "10.evil.example")
            ] == [200, 403]
            busy = run_warm(home, "experiments", "ui", "--port", port)
            assert busy.returncode == 2
            assert "choose another --port" in busy.stderr
        finally:
            server.terminate()
            server.communicate(timeout=30)
    assert not answers(port, within=0), "a process of the server outlived it"


def status_of_root(port: int, host: str) -> int:
    """Ask a server on loopback for its page under a name it may not be meant by."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/", headers={"Host": host})
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_server_that_goes_away_costs_no_trial(home: Path) -> None:
    """Search against a real MLflow server, kill it on the way, start it again and go on;
    then promote from it.
    """
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    search = (*SEARCH, 4, "--tracking-uri", uri)
    server = serve(home, port)
    process = start(home, *search, "--store-patience", 1)
    for line in process.stdout or ():
        if line.startswith("#0"):
            break
    stop(server)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1].startswith("error: a store or disk failed"), errors
    assert "Traceback" not in errors
    server = serve(home, port)
    try:
        done = run_warm(home, *search)
        assert done.returncode == 0, done.stderr
        assert f"promote --study {STUDY} --tracking-uri {uri}" in done.stdout
        assert f"Best trials: {uri}/#/experiments/1/runs?viewStateShareKey={STUDY}" in done.stdout
        assert Counter(run.info.status for run in TrackingStore(uri).runs("")) == {"FINISHED": 5}
        assert (
            run_warm(
                home, "experiments", "promote", "--study", STUDY, "--tracking-uri", uri
            ).returncode
            == 0
        )
        said = run_warm(home, "speaker", "predict", "--data", "corpus", "--tracking-uri", uri)
        assert said.returncode == 0, said.stderr
        login = f"http://me:secret@127.0.0.1:{port}"
        said = run_warm(home, *SEARCH, 5, "--tracking-uri", login)
        assert said.returncode == 0, said.stderr
        assert "View run" not in said.stdout  # lines of MLflow's own, with the address
        assert "secret" not in said.stdout + said.stderr
    finally:
        stop(server)


def test_a_training_whose_server_goes_away_ends_in_one_line_and_resumes(home: Path) -> None:
    port = free_port()
    words = (
        "train_trial.py",
        "--data",
        "corpus",
        "--d-model",
        16,
        "--batch-size",
        8,
        "--steps",
        1500,
        "--valid-every",
        50,
        "--tracking-uri",
        f"http://127.0.0.1:{port}",
    )
    server = serve(home, port)
    process = start(home, *words, "--store-patience", 1)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Runs are kept in http://127.0.0.1:")
    run_id = process.stdout.readline().split()[1].rstrip(".")
    while "step=500" not in process.stdout.readline():  # there is a checkpoint by then
        pass
    stop(server)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: a store or disk failed"), errors
    assert last.endswith(f"--resume {run_id}"), errors
    server = serve(home, port)
    try:
        done = run_warm(home, *words, "--resume", run_id)
        assert done.returncode == 0, done.stderr
        assert "starts over" not in done.stdout
    finally:
        stop(server)


def test_a_small_corpus_is_searched_with_a_batch_that_fits(home: Path) -> None:
    write_corpus(home / "tiny", speakers=2, per_speaker=2)
    done = run_warm(home, "search.py", "--data", "tiny", "--trials", 1, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert "A step has 3 utterances instead of 32" in done.stdout


def test_a_corpus_without_test_utterances_is_not_to_be_predicted(home: Path) -> None:
    write_corpus(home / "untested", speakers=2, per_speaker=2, test=0)
    done = run_warm(home, "search.py", "--data", "untested", "--trials", 1, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("Next:\n")[2].splitlines() == [
        "  python -m experiments promote --study homework-untested", "  python -m experiments ui",
    ]  # fmt: skip


def test_help_names_every_flag() -> None:
    done = run_warm(Path.cwd(), "search.py", "--help")
    assert done.returncode == 0
    for flag in ("--trials", "--data", "--study", "--seed", "--device", "--storage", "--tracking-uri", "--steps",
                 "--space", "--timeout", "--patience", "--budget", "--sampler", "--pruner"):  # fmt: skip
        assert flag in done.stdout
    assert "%" not in done.stdout


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("search.py", "--data", "none"), "must be a folder, but none does not exist"),
        (("search.py", "--data", "no-mapping"), "mapping.json is missing"),
        (("search.py", "--data", "broken"), "metadata.json must be JSON"),
        (("search.py", "--trials", "0"), "--trials: must be at least 1, but got 0"),
        (("search.py", "--trials", "many"), "--trials: must be a whole number, but got 'many'"),
        (("search.py", "--steps", "-5"), "--steps: must be at least 1"),
        (("search.py", "--timeout", "0"), "--timeout: must be above 0"),
        (("search.py", "--patience", "0"), "--patience: must be at least 1"),
        (("search.py", "--budget", "1.5"), "--budget: must be a whole number"),
        (("search.py", "--patience", "3", "--preset", "four-edits"), "leave out one of them"),
        (("search.py", "--space", "small"), "--space must be one of homework, wide, training, but got 'small'"),
        (("search.py", "--sampler", "magic"), "--sampler: invalid choice"),
        (("search.py", "--fix", "width=3"), "a field must be given as NAME=VALUE"),
        (("search.py", "--choices", "d_model=96"), "--choices d_model must be within the space"),
        (("search.py", "--fix", "d_model=80", "--preset", "four-edits"), "varies all four"),
        (("search.py", "--device", "tpu"), "--device must be .* got 'tpu': devices are cpu"),
        (("search.py", "--device", "cpu:"), "--device must be one that can be used here"),
        (("search.py", "--device", "cuda:99"), "--device must be one that can be used here"),
        (("search.py", "--data", "corpus", "--study", "a/b"), "--study: must be of letters"),
        (("search.py", "--data", "corpus", "--storage", "mysql://u:secret@h/d"), "a storage must be .*mysql://u:\\*\\*\\*@h/d"),
        (("search.py", "--data", "corpus", "--tracking-uri", "nonsense://"), "does not answer"),
        (("search.py", "--data", "corpus", "--tracking-uri", "sqlite:///corpus/mapping.json"), "does not answer"),
        (("search.py", "--data", "corpus", "--storage", "sqlite:///corpus/mapping.json"), "cannot be opened"),
        (("search.py", "--data", "tiny", "--batch-size", "9"), "batch_size must be at most the number of training utterances, 3"),
        (("search.py", "--data", "corpus", "--seed", "-1"), "--seed"),
        (("train_trial.py", "--activation", "cube"), "activation must be one of sigmoid, relu, gelu, tanh, silu"),
        (("train_trial.py", "--d-model", "80", "--nhead", "32"), "nhead must divide d_model, but got d_model=80"),
        (("train_trial.py", "--lr", "nan"), "lr must be above 0"),
        (("train_trial.py", "--steps", "0"), "steps must be at least 1"),
        (("train_trial.py", "--preset", "mine"), "--preset: invalid choice"),
        (("train_trial.py", "--data", "corpus", "--batch-size", "8", "--resume", "f0"), "--resume must name a run"),
        (("train_trial.py", "--data", "corpus", "--resume", "../x"), "--resume: must be of letters"),
        (("train_trial.py", "--data", "corpus", "--resume", ""), "--resume: must be of letters"),
        (("search.py", "--precision", "fp8"), "--precision: invalid choice"),
        (("search.py", "--preset", "reproduce", "--fix", "lr=0.01"), "leave out --space, --fix and --choices"),
        (("search.py", "--preset", "homework", "--rescue"), "leave out one of the two"),
        (("experiments", "promote", "--study", "none"), "there are no runs yet|there is no study"),
        (("experiments", "promote", "--run", "x", "--force", " "), "must be a reason in words"),
        (("experiments", "promote", "--run", "x", "--alias", "v1"), "must be no number, no v1"),
        (("experiments", "demote"), "there are no runs yet"),
        (("experiments", "compare", "--study", "it's"), "--study: must be of letters"),
        (("experiments", "ui", "--port", "70000"), "--port: must be from 1 to 65535"),
        (("experiments", "fly"), "invalid choice"),
        (("experiments",), "required"),
        (("speaker", "predict", "--data", "corpus"), "there are no runs yet"),
        (("speaker", "predict", "--data", "corpus", "--model", "corpus"), "a model is a folder with"),
        (("speaker", "predict", "--data", "corpus", "--out", "/"), "--out must be a file"),
        (("speaker", "predict", "--data", "corpus", "--out", "broken/metadata.json"), "holds something else"),
        (("experiments", "fetch", "--out", "corpus"), "--out must be a new or empty folder"),
        (("experiments", "fetch", "--out", "x", "--best", "2"), "--best needs --study"),
        (("speaker", "prepare", "--audio", "corpus", "--out", "corpus/x"), "--out must lie outside"),
        (("speaker", "predict"), "--data"),
        (("speaker", "predict", "--data", "untested"), "must list utterances to predict, but lists none"),
        (("speaker", "check", "broken"), "must be JSON"),
        (("speaker", "check", "corpus", "--figure", "none/x.png"), "--figure must be a file"),
        (("speaker", "check", "corpus", "--figure", "x.txt"), "--figure must end in"),
        (("speaker", "prepare", "--audio", "none", "--out", "x"), "--audio must be a folder"),
        (("speaker", "prepare", "--audio", "corpus", "--out", "x"), "at least 2 speakers"),
        (("speaker", "prepare", "--audio", "corpus", "--out", "x", "--test-share", "1"), "below 1"),
        (("speaker", "prepare", "--audio", "corpus", "--out", "x", "--workers", "0"), "at least 1"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_bad_input_is_one_clear_line(home: Path, words: tuple[str, ...], rule: str) -> None:
    shutil.copytree(home / "corpus", home / "no-mapping")
    (home / "no-mapping" / "mapping.json").unlink()
    shutil.copytree(home / "corpus", home / "broken")
    (home / "broken" / "metadata.json").write_text('{"n_mels": 40,')
    write_corpus(home / "tiny", speakers=2, per_speaker=2)
    write_corpus(home / "untested", speakers=2, per_speaker=2, test=0)
    done = run_warm(home, *words)
    assert done.returncode == 2, done.stderr
    assert re.search(rule, done.stderr), done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_bad_input_on_a_finished_study_loses_nothing(home: Path) -> None:
    assert run_warm(home, *SEARCH, 2).returncode == 0
    write_corpus(home / "others", speakers=3, per_speaker=14, frames=(4, 9), seed=1)
    write_corpus(home / "mels", speakers=3, per_speaker=14, frames=(4, 9), n_mels=20)
    assert run_warm(home, "experiments", "promote", "--study", STUDY).returncode == 0
    cases = [
        (
            ("search.py", "--data", "others", "--steps", "5", "--study", STUDY),
            "corpus is .* choose another --study, such as",
        ),
        (
            (*SEARCH, "2", "--space", "wide", "--study", STUDY),
            "space is homework there and wide here",
        ),
        ((*SEARCH, "2", "--seed", "1"), "seed is 0 there and 1 here"),
        (("experiments", "promote", "--study", "none"), "there is no study 'none'"),
        (
            ("speaker", "predict", "--data", "others"),
            "the model knows 3, .* has 3, and 0 are in both",
        ),
        (("speaker", "predict", "--data", "mels"), "the model has 40 and .* has 20"),
        (
            ("speaker", "predict", "--data", "corpus", "--model", "challenger"),
            "--model must be an alias",
        ),
        (("speaker", "predict", "--data", "corpus", "--out", "none/x.csv"), "--out must be a file"),
        (("speaker", "predict", "--data", "corpus", "--ensemble", "2"), "needs --study NAME"),
        (
            ("speaker", "predict", "--data", "corpus", "--ensemble", "9", "--study", STUDY),
            "9 are wanted and study",
        ),
    ]
    for words, rule in cases:
        done = run_warm(home, *words)
        assert done.returncode == 2, (words, done.stderr)
        assert re.search(rule, done.stderr), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert_whole(home, 2)
    assert not (home / "submission.csv").exists()
