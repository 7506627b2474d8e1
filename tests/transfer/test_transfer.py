"""A study that was exported and taken in elsewhere is the same study there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.analysis.confirmation import (
    confirmation_of,
    confirmed_run,
    latest_confirmation,
)
from experiments.confirm import Machine, confirm_best
from experiments.context import TrainingContext
from experiments.engines.inline import Inline
from experiments.registry.versions import download_model, find_version
from experiments.tracking import names, validation
from experiments.tracking.artifacts import read_text
from experiments.tracking.names import CHAMPION
from experiments.tracking.validation import from_csv
from experiments.transfer.outgoing import export
from experiments.upkeep.moved import bring_home
from speaker.model.saved_model import load_model
from tests.helpers import refused
from tests.models import finished_run
from tests.transfer.places import (
    SETTINGS,
    rows_in,
    search_in,
    storage_in,
    store_in,
    take_to,
    trials_in,
    worker_in,
)


@pytest.fixture(scope="module")
def taken(there: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another place, to which the study was taken; it is copied, or stays as it is."""
    state = tmp_path_factory.mktemp("taken") / "mlruns"
    assert take_to(state, there / "s.zip").new == ["s"]
    return state


def test_the_study_is_the_same(there: Path, taken: Path, tmp_path: Path) -> None:
    assert rows_in(taken) == rows_in(there)
    assert trials_in(taken) == trials_in(there)
    models = []
    for state in (there, taken):
        folder = tmp_path / state.name
        download_model(store_in(state), CHAMPION, folder)
        models.append(load_model(folder))
    frames = torch.randn(3, 50, 40), torch.tensor([50, 20, 3])
    assert torch.equal(models[0].model(*frames), models[1].model(*frames))
    assert models[0].speakers == models[1].speakers


def test_runs_keep_all_but_their_ids(there: Path, taken: Path) -> None:
    for before, after in zip(
        store_in(there).trial_runs("s"), store_in(taken).trial_runs("s"), strict=True
    ):
        old, new = before.info.run_id, after.info.run_id
        assert (before.info.status, before.info.start_time, before.info.end_time) == (
            after.info.status, after.info.start_time, after.info.end_time,
        )  # fmt: skip
        assert before.data.params == after.data.params
        assert before.data.metrics == after.data.metrics
        own = {names.IMPORT, names.PARENT, names.DESCRIPTION}
        assert {k: v for k, v in before.data.tags.items() if k not in own} == {
            k: v for k, v in after.data.tags.items() if k not in own
        }
        about = before.data.tags[names.DESCRIPTION]
        assert old in about
        assert after.data.tags[names.DESCRIPTION] == about.replace(old, new)
        assert before.inputs.dataset_inputs[0].dataset == after.inputs.dataset_inputs[0].dataset
        texts = [
            read_text(store_in(state), run, validation.FILE)
            for state, run in ((there, before), (taken, after))
        ]
        assert from_csv(texts[0])
        assert texts[0] == texts[1]


@pytest.fixture
def copy(taken: Path, tmp_path: Path) -> Path:
    """The other place, to be changed; its addresses lead to the one that stays."""
    state = Path(shutil.copytree(taken, tmp_path / "copy"))
    bring_home(state / "mlflow.db")
    return state


def test_the_study_goes_on_where_it_was_taken(copy: Path, context: TrainingContext) -> None:
    worker = search_in(copy, context, replace(SETTINGS, trials=4))
    assert len(worker.finished()) == 4
    assert len(rows_in(copy)) == 4


def test_taking_it_again_changes_nothing(copy: Path, there: Path) -> None:
    store = store_in(copy)
    before = [run.to_dictionary() for run in store.runs("")]
    (line,) = take_to(copy, there / "s.zip").lines
    assert line == "Study s is here already (3 trials in the file, 3 here): nothing changed."
    assert [run.to_dictionary() for run in store.runs("")] == before


def test_beside_itself_under_another_name(copy: Path, there: Path) -> None:
    said = take_to(copy, there / "s.zip", "other")
    assert said.new == ["other"]
    assert "promote --run" in said.lines[-1], "the champion stays"
    assert rows_in(copy, "other") == rows_in(copy)
    champion = find_version(store_in(copy), CHAMPION)
    assert champion is not None
    assert str(champion.version) == "1"


def test_another_study_of_this_name_is_refused(
    there: Path, state: Path, context: TrainingContext
) -> None:
    worker_in(state, context)
    before = trials_in(state)
    assert "--as s-2" in refused(lambda: take_to(state, there / "s.zip"))
    assert trials_in(state) == before == []
    assert take_to(state, there / "s.zip", "s-2").new == ["s-2"]


def test_trials_whose_runs_are_elsewhere_are_refused(copy: Path, there: Path) -> None:
    (copy / "mlflow.db").unlink()
    assert "give the right --tracking-uri" in refused(lambda: take_to(copy, there / "s.zip"))


def test_models_that_are_lost_are_named(copy: Path, tmp_path: Path, state: Path) -> None:
    store = store_in(copy)
    for run in store.trial_runs("s"):
        shutil.rmtree(Path(run.info.artifact_uri.removeprefix("file://"), "model"))
    written = export(store, storage_in(copy), "s", tmp_path / "s.zip")
    champion = find_version(store, CHAMPION)
    assert champion is not None
    assert written.models == 1, "a registered one has files of its own"
    assert len(written.lost) == 2
    assert champion.run_id not in written.lost
    assert take_to(state, tmp_path / "s.zip").new == ["s"]
    assert rows_in(state) == rows_in(copy)


@pytest.mark.parametrize("study", ["unknown", "runs-alone"])
def test_what_is_no_study_is_not_exported(
    there: Path, tmp_path: Path, context: TrainingContext, study: str
) -> None:
    store = store_in(there)
    if study == "runs-alone":
        store.open_study(study, "f" * 32, None, {}, {}, context)
        finished_run(store, context, 0, "111000", study=study)
    refused(lambda: export(store, storage_in(there), study, tmp_path / "s.zip"))
    assert list(tmp_path.iterdir()) == []


def test_a_confirmation_goes_along(
    copy: Path, context: TrainingContext, tmp_path: Path, state: Path
) -> None:
    store = store_in(copy)
    confirm_best(store, "s", 2, 2, Machine(context, storage_in(copy), Inline()))
    written = export(store, storage_in(copy), "s", tmp_path / "s.zip")
    (race,) = written.studies[1:]
    for name in ("s", "other"):
        new = take_to(state, tmp_path / "s.zip", None if name == "s" else name).new
        assert new == [name, name + race.removeprefix("s")]
        there, here = latest_confirmation(store, "s"), latest_confirmation(store_in(state), name)
        assert there is not None
        assert here is not None
        assert here[2] == there[2], "the same points, means and estimate"
        assert confirmed_words(state, name) == confirmed_words(copy, "s").replace("s-", f"{name}-")
    assert rows_in(state, "other-" + race.removeprefix("s-")) == rows_in(copy, race)
    confirm_best(store_in(state), "s", 2, 2, Machine(context, storage_in(state), Inline()))
    assert len(rows_in(state, race)) == len(rows_in(copy, race)), "it has ended there, too"


def confirmed_words(state: Path, study: str) -> str:
    """Return how the run that would be promoted was confirmed."""
    store = store_in(state)
    found = confirmed_run(store, study)
    assert found is not None
    return confirmation_of(store, store.client.get_run(found[0]))
