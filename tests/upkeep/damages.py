"""Damages to plant into a state folder, each with what the doctor must call it."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import optuna
from mlflow.entities import LoggedModelStatus, Metric, Run

from experiments.registry.versions import find_version, logged_model_of, versions_of
from experiments.tracking import names
from experiments.tracking.staged import STAGED
from experiments.tracking.store import TrackingStore
from experiments.upkeep.leftovers import _remove_run
from speaker.training.metrics import OBJECTIVE
from tests.transfer.places import storage_in, store_in

NOBODY = "e" * 32
LOSE, SET = "DELETE FROM {}", "UPDATE {} SET value = 0.123"


@dataclass(frozen=True)
class Scene:
    """A copy of the state folder that a test may spoil."""

    state: Path

    @cached_property
    def store(self) -> TrackingStore:
        return store_in(self.state)

    def sql(self, name: str, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.state / f"{name}.db")) as opened, opened:
            assert opened.execute(statement, values).rowcount, "it changes something"

    @cached_property
    def runs(self) -> list[str]:
        """The runs of study s: that of the version first."""
        every = [run.info.run_id for run in self.store.trial_runs("s")]
        registered = [str(version.run_id) for version in versions_of(self.store)]
        return [*registered, *(run_id for run_id in every if run_id not in registered)]

    def run(self, place: int = 2) -> str:
        return self.runs[place]

    @cached_property
    def open_run(self) -> str:
        """The run of the trial of study `open` that was interrupted."""
        return str(self.store.trial_runs("open")[1].info.run_id)

    @cached_property
    def parent(self) -> str:
        return str(self.store.study_runs("s")[0].info.run_id)

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.store.client.get_run(run_id).data.tags)

    def tag(self, run_id: str, **tags: str) -> str:
        self.store.tag_run(run_id, {name.replace("__", "."): text for name, text in tags.items()})
        return run_id

    def end(self, run_id: str, state: str, status: str) -> str:
        self.store.tag_run(run_id, {names.STATE: state})
        self.store.client.update_run(run_id, status=status)
        return run_id

    def copy_of(self, run_id: str, **changes: str) -> str:
        """Make another run with the tags of a run, and some others."""
        tags = self.tags(run_id) | {name.replace("__", "."): text for name, text in changes.items()}
        made: Run = self.store.client.create_run(self.store.experiment_id, tags=tags)
        self.store.client.set_terminated(made.info.run_id)
        return str(made.info.run_id)

    def purge(self, run_id: str) -> str:
        self.store.client.delete_run(run_id)
        _remove_run(self.store, self.store.client.get_run(run_id))
        return run_id

    def files(self, run_id: str, *below: str) -> Path:
        return self.state / "artifacts" / run_id / "artifacts" / Path(*below)

    def version_files(self, number: int) -> Path:
        version = self.store.client.get_model_version(names.MODEL, str(number))
        return self.state / "artifacts" / "models" / logged_model_of(version) / "artifacts"

    @property
    def checkpoint(self) -> Path:
        return self.state / "checkpoints" / f"{self.open_run}.checkpoint"

    @property
    def pack(self) -> Path:
        (found,) = (self.state / "packs").glob("[!.]*/")
        return found


@dataclass(frozen=True)
class Damage:
    """What is planted, what it is called, and whether it can be mended.

    `plant` returns a word that stands in whatever mending changes.
    """

    name: str
    kinds: tuple[str, ...]
    plant: Callable[[Scene], object]
    is_mended: bool = True


def flip(path: Path) -> str:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.name


def write(path: Path, data: bytes = b"") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.parent.name if path.parent.name == "gone" else path.name


def copy(path: Path, run_id: str) -> str:
    shutil.copy(path, path.with_stem(run_id))
    return run_id


def lose(path: Path) -> str:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return str(path)


def last_row(scene: Scene) -> Metric:
    rows = scene.store.client.get_metric_history(scene.run(), OBJECTIVE)
    return max(rows, key=lambda row: row.step)


def double_rows(scene: Scene) -> str:
    row = last_row(scene)
    again = [Metric(OBJECTIVE, row.value, row.timestamp + 5, row.step)]
    scene.store.client.log_batch(scene.run(), metrics=again)
    return scene.run()


def lose_study(scene: Scene) -> str:
    optuna.delete_study(study_name="open", storage=storage_in(scene.state))
    return lose(scene.state / "locks" / "optuna" / "open")


def unlink(scene: Scene, run_id: str) -> str:
    where = "WHERE key = 'mlflow.run_id' AND value_json = ?"
    scene.sql("optuna", f"DELETE FROM trial_user_attributes {where}", f'"{run_id}"')  # noqa: S608
    return run_id


def forget_best(scene: Scene) -> str:
    for table in ("metrics", "latest_metrics"):
        where = "WHERE key = ? AND run_uuid = ? AND step = 3"
        scene.sql("mlflow", f"DELETE FROM {table} {where}", names.BEST_WHOLE, scene.parent)  # noqa: S608
    values = "SELECT key, value, timestamp, step, is_nan, run_uuid FROM metrics"
    insert = "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
    scene.sql("mlflow", f"{insert} {values} {where[:-1]}2", names.BEST_WHOLE, scene.parent)
    return scene.parent


def half_a_file(path: Path) -> Path:
    """Leave what a kill leaves of a file that was being kept a while ago."""
    write(path)
    os.utime(path, (0, 0))
    return path


def half_promotion(scene: Scene) -> str:
    """What a promotion leaves that is killed before the version appears."""
    client, run_id = scene.store.client, scene.run()
    tags = {names.FILES: "0" * 64}
    model = client.create_logged_model(scene.store.experiment_id, names.MODEL, run_id, tags=tags)
    client.log_model_artifacts(model.model_id, str(scene.files(run_id, "model")))
    return str(model.model_id)


def unready(scene: Scene) -> str:
    model_id = scene.version_files(1).parent.name
    pending = LoggedModelStatus.PENDING.to_int()
    scene.sql("mlflow", "UPDATE logged_models SET status = ? WHERE model_id = ?", pending, model_id)
    return model_id


def untold(scene: Scene) -> str:
    champion = find_version(scene.store, names.CHAMPION)
    assert champion is not None
    scene.store.client.delete_model_version_tag(names.MODEL, champion.version, names.PROMOTED_TAG)
    return names.PROMOTED_TAG


def strand_alone(scene: Scene) -> str:
    return scene.store.open_run("d16", {}).run_id


def set_param(scene: Scene) -> str:
    where = "WHERE key = 'num_layers' AND run_uuid = ?"
    scene.sql("mlflow", f"UPDATE params SET value = '5' {where}", scene.run())  # noqa: S608
    return scene.run()


def change_metric(key: str, verb: str) -> Callable[[Scene], str]:
    """Change or delete a metric of a run of study s, wherever MLflow keeps it."""

    def plant(scene: Scene) -> str:
        step = last_row(scene).step
        for table in ("metrics", "latest_metrics"):
            where = "WHERE key = ? AND run_uuid = ? AND step = ?"
            statement = verb.format(table) + f" {where}"
            scene.sql("mlflow", statement, key, scene.run(), step)
        return scene.run()

    return plant


def two_of_a_name(scene: Scene) -> str:
    return scene.copy_of(scene.parent, study__id="f" * 32)


DAMAGES = (
    Damage("ended-run-open", ("run left open",), lambda s: s.end(s.run(), "running", "RUNNING")),
    Damage("tagged-run-open", ("run left open",), lambda s: s.end(s.run(), "complete", "RUNNING")),
    Damage("ended-otherwise", ("ends differ",), lambda s: s.end(s.run(), "failed", "FAILED")),
    Damage("ended-half", ("ends differ",), lambda s: s.end(s.run(), "complete", "KILLED")),
    Damage("stranded", ("stranded",), lambda s: s.end(s.open_run, "running", "RUNNING")),
    Damage("stranded-alone", ("stranded",), strand_alone),
    Damage("ended-first", ("run ended first",), lambda s: s.end(s.open_run, "failed", "FAILED")),
    Damage("run-deleted", ("run deleted",), lambda s: s.store.client.delete_run(s.run()), False),
    Damage("open-run-deleted", ("run deleted",), lambda s: s.store.client.delete_run(s.open_run), False),
    Damage("run-purged", ("run gone",), lambda s: s.purge(s.run()), False),
    Damage("run-doubled", ("run doubled",), lambda s: s.copy_of(s.run())),
    Damage("run-of-no-trial", ("run of no trial",), lambda s: s.copy_of(s.run(), trial="99")),
    Damage("no-link", ("run not linked",), lambda s: unlink(s, s.run())),
    Damage("open-no-link", ("run not linked",), lambda s: unlink(s, s.open_run)),
    Damage("run-misnamed", ("run misnamed",), lambda s: s.tag(s.run(), trial="99")),
    Damage("run-misplaced", ("run misplaced",), lambda s: s.tag(s.run(), mlflow__parentRunId=s.run(0))),
    Damage("point", ("points differ",), set_param, False),
    Damage("rows-doubled", ("rows doubled",), double_rows),
    Damage("rows-missing", ("rows missing",), change_metric(OBJECTIVE, LOSE)),
    Damage("rows-differ", ("rows differ",), change_metric(OBJECTIVE, SET), False),
    Damage("rows-ahead", ("rows unheard of",), lambda s: s.store.client.log_metric(s.run(), OBJECTIVE, 0.5, step=99), False),
    Damage("accuracy-missing", ("accuracy missing",), change_metric(names.BEST_WHOLE, LOSE)),
    Damage("accuracy-differs", ("accuracies differ",), change_metric(names.BEST_WHOLE, SET), False),
    Damage("parent-purged", ("study run missing",), lambda s: s.purge(s.parent)),
    Damage("parent-deleted", ("study run deleted",), lambda s: (s.store.client.delete_run(s.parent), s.parent)[1]),
    Damage("parent-doubled", ("study run doubled",), lambda s: s.copy_of(s.parent)),
    Damage("parent-misnamed", ("study run misnamed",), lambda s: s.tag(s.parent, study__id="f" * 32)),
    Damage("parent-no-link", ("study not linked",), lambda s: (s.sql("optuna", "DELETE FROM study_user_attributes WHERE key = 'mlflow.run_id' AND value_json = ?", f'"{s.parent}"'), s.parent)[1]),
    Damage("two-of-a-name", ("two studies of a name",), two_of_a_name, False),
    Damage("parent-open", ("study left open",), lambda s: s.end(s.parent, "running", "RUNNING")),
    Damage("best-not-noted", ("best not noted",), forget_best),
    Damage("study-lost", ("study missing",), lose_study, False),
    Damage("import-cut-off", ("import cut off",), lambda s: s.store.client.create_run(s.store.experiment_id, tags={names.IMPORT: "id other"}), False),
    Damage("checkpoint-left", ("checkpoint left",), lambda s: copy(s.checkpoint, s.run())),
    Damage("checkpoint-damaged", ("checkpoint damaged",), lambda s: flip(s.checkpoint)),
    Damage("checkpoint-cut", ("checkpoint damaged",), lambda s: write(s.checkpoint, s.checkpoint.read_bytes()[:99])),
    Damage("checkpoint-half", ("half a checkpoint",), lambda s: write(s.checkpoint.with_name(f".{s.checkpoint.name}.7.partial"))),
    Damage("copy-half", ("half a checkpoint",), lambda s: write(s.checkpoint.with_name(f".{s.checkpoint.name}.x_1.partial") / "step-4.checkpoint", b"half") and s.checkpoint.name),
    Damage("checkpoint-of-nobody", ("checkpoint of no run",), lambda s: copy(s.checkpoint, NOBODY), False),
    Damage("model-lost", ("model missing",), lambda s: lose(s.files(s.run(), "model")), False),
    Damage("weights-lost", ("model missing",), lambda s: lose(s.files(s.run(), "model", "weights.safetensors")), False),
    Damage("model-lost-of-version", ("model missing",), lambda s: lose(s.files(s.run(0), "model"))),
    Damage("weights-flipped", ("model damaged",), lambda s: flip(s.files(s.run(), "model", "weights.safetensors")), False),
    Damage("weights-flipped-of-version", ("model damaged",), lambda s: flip(s.files(s.run(0), "model", "weights.safetensors"))),
    Damage("card-changed", ("model damaged",), lambda s: flip(s.files(s.run(0), "model", "model.json")) and s.run(0)),
    Damage("half-removed", ("weights half removed",), lambda s: s.tag(s.run(), weights__removed="a note")),
    Damage("config-lost", ("config missing",), lambda s: lose(s.files(s.run(), "config.json"))),
    Damage("config-damaged", ("config damaged",), lambda s: write(s.files(s.run(), "config.json"), b"{}")),
    Damage("file-half", ("half a file",), lambda s: half_a_file(s.files(s.run(), f"{STAGED}x")) and s.run()),
    Damage("predictions-lost", ("predictions missing",), lambda s: lose(s.files(s.run(), "validation.csv")), False),
    Damage("predictions-damaged", ("predictions damaged",), lambda s: write(s.files(s.run(), "validation.csv"), b"no table"), False),
    Damage("files-of-nobody", ("files of no run",), lambda s: write(s.state / "artifacts" / NOBODY / "weights", bytes(9)), False),
    Damage("lock-of-no-study", ("lock of no study",), lambda s: write(s.state / "locks" / "optuna" / "gone" / "study.lock")),
    Damage("lock-of-no-trial", ("lock of no trial",), lambda s: write(s.state / "locks" / "optuna" / "s" / "trial-99.lock")),
    Damage("lock-of-no-run", ("lock of no run",), lambda s: write(s.state / "locks" / "runs" / f"{NOBODY}.lock")),
    Damage("frames-flipped", ("pack damaged",), lambda s: flip(s.pack / "frames.f16") and s.pack.name),
    Damage("index-flipped", ("pack damaged",), lambda s: flip(s.pack / "index.safetensors") and s.pack.name),
    Damage("pack-cut", ("pack damaged",), lambda s: lose(s.pack / "pack.json") and s.pack.name),
    Damage("pack-half", ("half made",), lambda s: write(s.state / "packs" / ".tiny-1.partial" / "frames.f16") and ".tiny-1"),
    Damage("store-half", ("half made",), lambda s: write(s.state / ".optuna.db.partial")),
    Damage("version-of-no-run", ("run gone", "version of no run"), lambda s: s.purge(s.run(0)), False),
    Damage("alias-of-no-version", ("alias of no version",), lambda s: s.sql("mlflow", "UPDATE registered_model_aliases SET version = 99 WHERE alias = 'champion'") or names.CHAMPION),
    Damage("version-lost", ("version damaged",), lambda s: lose(s.version_files(1)) and s.version_files(1).parent.name),
    Damage("version-changed", ("version damaged",), lambda s: flip(next(s.version_files(1).rglob("program.pt2"))) and s.version_files(1).parent.name),
    Damage("promotion-half", ("promotion cut off",), half_promotion),
    Damage("promotion-unready", ("promotion cut off",), unready),
    Damage("promotion-untold", ("promotion cut off",), untold),
)  # fmt: skip
