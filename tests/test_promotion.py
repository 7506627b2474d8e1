"""Promotion and demotion, on a real store with real files."""

import filecmp
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from experiments.context import TrainingContext
from experiments.promotion import Request, demote, promote
from experiments.registry.versions import describe_broken, download_model, find_version
from experiments.tracking.names import CHAMPION, MODEL
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.model.saved_model import WEIGHTS, load_model
from tests.helpers import TINY, refused
from tests.models import finished_run, other_corpus
from tests.warm import run_warm

WHEN = "2026-11-28 04:00:00 UTC"
NOW = Request(WHEN)
POOR, GOOD, BEST = "1" * 5 + "0" * 15, "1" * 12 + "0" * 8, "1" * 19 + "0"


@pytest.fixture
def store(state: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{state}/mlflow.db")


@pytest.fixture
def good(store: TrackingStore, context: TrainingContext) -> str:
    """The run of a champion."""
    run_id, _ = finished_run(store, context, 0, GOOD)
    promote(store, run_id, NOW)
    return run_id


def champion(store: TrackingStore) -> str:
    found = find_version(store, CHAMPION)
    return str(found.version) if found else ""


def everything(store: TrackingStore) -> tuple[object, ...]:
    """Return what the store holds, as far as a promotion could change it."""
    client = store.client
    versions = client.search_model_versions(f"name = '{MODEL}'")
    return (
        client.get_registered_model(MODEL).tags if versions else {},
        [(each.version, each.tags, each.description) for each in versions],
        sorted(each.model_id for each in client.search_logged_models([store.experiment_id])),
        [(run.info.run_id, run.data.tags) for run in store.runs("")],
        champion(store),
    )


def test_the_first_model_passes_and_the_same_one_changes_nothing(
    store: TrackingStore, context: TrainingContext
) -> None:
    run_id, _ = finished_run(store, context, 0, GOOD)
    first, *others = promote(store, run_id, NOW).splitlines()
    assert first == (
        f"champion of {MODEL} is version 1: {TINY.label()}, whole 0.6000, crops 0.3000, #0 of study s"
    )
    assert others[0] == "There was none before."
    assert others[1].startswith("Confirmed: no: the best of its study by the utterances")
    before = everything(store)
    assert promote(store, run_id, NOW).splitlines() == [
        first, "It was before, too: nothing changed.",
    ]  # fmt: skip
    assert everything(store) == before


@pytest.mark.usefixtures("good")
def test_a_better_model_passes(store: TrackingStore, context: TrainingContext) -> None:
    run_id, _ = finished_run(store, context, 1, BEST)
    said = promote(store, run_id, NOW)
    assert f"champion of {MODEL} is version 2" in said
    assert f"Before, it was version 1: {TINY.label()}" in said
    assert (
        "Gate: 0.9500 of #1 of study s against 0.6000 of version 1 (#0 of study s): better" in said
    )
    tags = find_version(store, CHAMPION).tags  # type: ignore[union-attr]  # there is one
    assert tags["promoted"].startswith(f"champion since {WHEN}: 0.9500 of #1 of study s against")
    assert tags["accuracy"].startswith("0.9500 on 20 whole validation utterances (90 % interval")
    assert tags["confirmed"].startswith("no: ")
    assert "forced" not in tags


@pytest.mark.parametrize(
    ("hits", "kind"),
    [
        (POOR, "worse"),
        (GOOD, "equal"),
        (GOOD[::-1], "no more than luck explains"),
        ("1" * 14 + "0" * 6, "no more"),
    ],
)
@pytest.mark.usefixtures("good")
def test_what_is_not_better_is_refused_and_nothing_changes(
    store: TrackingStore, context: TrainingContext, hits: str, kind: str
) -> None:
    run_id, _ = finished_run(store, context, 1, hits)
    before = everything(store)
    said = refused(lambda: promote(store, run_id, NOW))
    accuracy = hits.count("1") / 20
    assert (
        f"{accuracy:.4f} of #1 of study s against 0.6000 of version 1 (#0 of study s): {kind}"
        in said
    )
    assert f"difference {accuracy - 0.6:+.4f} (90 % interval " in said
    assert said.endswith("or override this with --force REASON")
    assert everything(store) == before


@pytest.mark.usefixtures("good")
def test_a_model_of_another_corpus_is_refused_but_may_have_another_alias(
    store: TrackingStore, context: TrainingContext
) -> None:
    run_id, _ = finished_run(store, other_corpus(context), 1, BEST)
    before = everything(store)
    said = refused(lambda: promote(store, run_id, NOW))
    assert (
        "they cannot be compared: they were scored on different corpora (tiny, digest ffffffff"
        in said
    )
    assert "keep both, with --alias NAME, or override this with --force REASON" in said
    assert everything(store) == before
    assert promote(store, run_id, Request(WHEN, "other")).startswith(
        f"other of {MODEL} is version 2"
    )
    assert champion(store) == "1"


def test_a_champion_whose_run_is_gone_cannot_be_compared(
    store: TrackingStore, context: TrainingContext, good: str
) -> None:
    store.client.delete_tag(good, "valid.hits")
    run_id, _ = finished_run(store, context, 1, BEST)
    said = refused(lambda: promote(store, run_id, NOW))
    assert "the run of version 1 (#0 of study s) keeps no record of which utterances" in said


@pytest.mark.usefixtures("good")
def test_force_is_recorded(store: TrackingStore, context: TrainingContext) -> None:
    run_id, _ = finished_run(store, context, 1, POOR)
    said = promote(store, run_id, Request(WHEN, reason="a smaller model\nis needed"))
    assert "Forced: a smaller model" in said
    version = store.client.get_model_version(MODEL, "2")
    for tags in (version.tags, store.client.get_run(run_id).data.tags):
        for part in (WHEN, "a smaller model is needed", "0.2500 of #1", "0.6000 of version 1"):
            assert part in tags["forced"]
    assert champion(store) == "2"
    assert "forced" not in store.client.get_model_version(MODEL, "1").tags


@pytest.mark.parametrize(
    ("hits", "reason", "expected"),
    [
        (BEST, "", "champion of speaker-classifier would be a new version: #1 of study s"),
        (POOR, "", "It would be refused: a new champion must be better"),
        (POOR, "must be", "It would be forced: must be"),
    ],
)
@pytest.mark.usefixtures("good")
def test_a_dry_run_changes_nothing(
    store: TrackingStore, context: TrainingContext, state: Path, tmp_path: Path,
    hits: str, reason: str, expected: str,
) -> None:  # fmt: skip
    run_id, _ = finished_run(store, context, 1, hits)
    before = everything(store)
    files = Path(shutil.copytree(state / "artifacts", tmp_path / "before"))
    said = promote(store, run_id, Request(WHEN, reason=reason, is_dry=True))
    assert expected in said
    assert said.endswith("This was a dry run: nothing changed.")
    assert everything(store) == before
    assert is_same(state / "artifacts", files)


def is_same(one: Path, other: Path) -> bool:
    """Tell whether two folders hold the same files."""
    names = [
        sorted(str(path.relative_to(each)) for path in each.rglob("*") if path.is_file())
        for each in (one, other)
    ]
    return (
        names[0] == names[1]
        and filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]
    )


def test_demote_goes_back_and_keeps_when_and_why(
    store: TrackingStore, context: TrainingContext, good: str
) -> None:
    only = refused(lambda: demote(store, NOW))
    assert "version 1 is the first that can be used" in only
    for number, hits in ((1, BEST), (2, POOR)):
        run_id, _ = finished_run(store, context, number, hits)
        promote(store, run_id, Request(WHEN, reason="a test"))
    said = demote(store, Request(WHEN, reason="worse in the field"))
    assert said.splitlines()[0].startswith(f"champion of {MODEL} is version 2")
    assert said.splitlines()[1].startswith("Before, it was version 3")
    told = store.client.get_model_version(MODEL, "3").tags["demoted"]
    assert told == f"champion until {WHEN}: worse in the field"
    assert demote(store, NOW).startswith(f"champion of {MODEL} is version 1")
    before = everything(store)
    assert refused(lambda: demote(store, NOW)) == only
    assert everything(store) == before
    kept = store.client.get_registered_model(MODEL).tags
    assert [kept[f"history.champion.{number:04}"].partition(" on ")[0] for number in range(5)] == [
        "version 1 promoted", "version 2 promoted", "version 3 promoted",
        "version 2 restored", "version 1 restored",
    ]  # fmt: skip
    promote(store, good, NOW)
    assert champion(store) == "1"


def test_nothing_to_demote_is_one_line(store: TrackingStore) -> None:
    assert "none of speaker-classifier is champion" in refused(lambda: demote(store, NOW))


@pytest.mark.usefixtures("good")
def test_demote_passes_over_what_cannot_be_used(
    store: TrackingStore, context: TrainingContext, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    for number, hits in ((1, BEST), (2, POOR)):
        run_id, _ = finished_run(store, context, number, hits)
        promote(store, run_id, Request(WHEN, reason="a test"))
    second = store.client.get_model_version(MODEL, "2")
    lose(state / "artifacts" / second.run_id)
    lose(place_of(store, "2"))
    assert demote(store, NOW).startswith(f"champion of {MODEL} is version 1")
    assert "warning: version 2 is broken" in capsys.readouterr().err


def place_of(store: TrackingStore, version: str) -> Path:
    """Return where a version's files lie."""
    return Path(store.client.get_model_version_download_uri(MODEL, version).removeprefix("file://"))


def lose(folder: Path) -> None:
    shutil.rmtree(folder)


def lose_weights(folder: Path) -> None:
    (folder / "artifacts" / WEIGHTS).unlink()


def flip_weights(folder: Path) -> None:
    flip(folder / "artifacts" / WEIGHTS)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def swap_speakers(folder: Path) -> None:
    file = folder / "artifacts" / "model.json"
    file.write_text(file.read_text().replace("id00000", "id0000x"))


def lose_program(folder: Path) -> None:
    (folder / "artifacts" / "program.pt2").unlink()


def change_program(folder: Path) -> None:
    (folder / "served_model.py").write_text("raise SystemExit")


DAMAGES = [lose, lose_weights, flip_weights, swap_speakers, lose_program, change_program]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_version_is_noticed_with_the_command_that_mends_it(
    store: TrackingStore, good: str, state: Path, damage: Callable[[Path], None]
) -> None:
    assert describe_broken(store, {good}) == []
    damage(place_of(store, "1"))
    assert describe_broken(store, {"another"}) == []
    (line,) = describe_broken(store, {good})
    assert line.startswith(f"warning: version 1 of {MODEL} is broken: ")
    mended = run_warm(state.parent, *line.partition("python -m ")[2].split())
    assert mended.returncode == 0, mended.stderr
    assert describe_broken(store, {good}) == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("verb", ["promote", "fetch"])
def test_a_broken_version_is_made_again_from_its_run(
    store: TrackingStore, good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None], verb: str,
) -> None:  # fmt: skip
    place = place_of(store, "1")
    files = Path(shutil.copytree(place, tmp_path / "before"))
    damage(place)
    if verb == "promote":
        assert promote(store, good, NOW).endswith("It was before, too: nothing changed.")
    else:
        download_model(store, CHAMPION, tmp_path / "model")
        assert load_model(tmp_path / "model").source["version"] == "1"
    assert f"version 1 was made again from run {good}" in capsys.readouterr().err
    names = [
        str(path.relative_to(files))
        for path in (files / "artifacts").iterdir()
        if path.suffix != ".pt2"
    ]
    assert len(names) == 3
    assert sorted(filecmp.cmpfiles(place, files, names, shallow=False)[0]) == sorted(names)
    assert (place / "README.md").read_text() == (files / "README.md").read_text()
    torch.export.load(place / "artifacts" / "program.pt2")
    promote(store, good, NOW)
    assert not capsys.readouterr().err, "it is whole now"


def test_a_dry_run_says_what_it_would_make_again(
    store: TrackingStore, good: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_of(store, "1")
    lose(place)
    promote(store, good, Request(WHEN, is_dry=True))
    assert (
        "version 1 would be made again: the model's files cannot be read" in capsys.readouterr().out
    )
    assert not place.exists()


def test_what_is_lost_in_its_run_too_is_one_line_and_may_be_replaced(
    store: TrackingStore, context: TrainingContext, good: str, state: Path, tmp_path: Path
) -> None:
    lose(place_of(store, "1"))
    lose(state / "artifacts" / good)
    for call in (
        lambda: download_model(store, CHAMPION, tmp_path / "model"),
        lambda: promote(store, good, NOW),
    ):
        said = refused(call)
        assert "version 1 is broken (the model's files cannot be read from" in said
        assert said.endswith("promote another: python -m experiments promote --run ID")
    run_id, _ = finished_run(store, context, 1, POOR)
    assert "Gate: what was before cannot be used: version 1 is broken" in promote(
        store, run_id, NOW
    )
    assert champion(store) == "2"


def test_a_deleted_run_still_repairs_its_version(
    store: TrackingStore, good: str, tmp_path: Path
) -> None:
    store.client.delete_run(good)
    lose(place_of(store, "1"))
    download_model(store, CHAMPION, tmp_path / "model")
    load_model(tmp_path / "model")


def test_a_run_without_its_files_is_not_registered(
    store: TrackingStore, context: TrainingContext, state: Path
) -> None:
    run_id, _ = finished_run(store, context, 0, GOOD)
    flip(next((state / "artifacts" / run_id).rglob(WEIGHTS)))
    assert "must have sha256" in refused(lambda: promote(store, run_id, NOW))
    assert store.client.search_registered_models() == []
    assert store.client.search_logged_models([store.experiment_id]) == []


def test_files_that_arrive_changed_are_not_registered(
    store: TrackingStore, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = finished_run(store, context, 0, GOOD)
    original = store.client.log_model_artifacts

    def log_and_spoil(model_id: str, folder: str) -> None:
        original(model_id, folder)
        place = store.client.get_logged_model(model_id).artifact_location
        flip_weights(Path(place.removeprefix("file://")))

    monkeypatch.setattr(store.client, "log_model_artifacts", log_and_spoil)
    assert "must be kept as they were sent" in refused(lambda: promote(store, run_id, NOW))
    assert find_version(store, CHAMPION) is None
    monkeypatch.undo()
    promote(store, run_id, NOW)
    assert len(store.client.search_logged_models([store.experiment_id])) == 1


def test_the_card_says_what_a_user_must_know(
    store: TrackingStore, context: TrainingContext
) -> None:
    run_id, _ = finished_run(store, context, 0, "101101")
    promote(store, run_id, Request(WHEN, packs=context.pack.folder.parent))
    version = store.client.get_model_version(MODEL, "1")
    card = version.description
    assert len(card) < 5_000
    for part in (
        "0.6667 on 6 whole validation utterances (90 % interval",
        "corpus `tiny`, 4 speakers", "valid part of split 0", f"run {run_id}", "seed 0",
        "d_model 16", "**Limits**", "--model champion", "**By length**", "| `id00",
        "**Confirmed**: no",
    ):  # fmt: skip
        assert part in card
    assert (place_of(store, "1") / "README.md").read_text() == card
    promote(store, run_id, Request(WHEN, "other"))
    finished, _ = finished_run(store, other_corpus(context), 1, "101101")
    promote(store, finished, Request(WHEN, "third", packs=context.pack.folder.parent))
    assert (
        "the data are no longer at hand" in store.client.get_model_version(MODEL, "2").description
    )


def test_a_confirmed_run_says_so(store: TrackingStore, context: TrainingContext) -> None:
    store.open_study("s", "id", None, {}, {}, context)
    store.open_study("s-confirm", "id2", None, {}, {"confirms": "s"}, context)
    for number, hits in enumerate((GOOD, BEST)):
        run_id, _ = finished_run(
            store, context, number, hits, study="s-confirm", replicate=str(number)
        )
    said = promote(store, run_id, NOW)
    assert "Confirmed: yes, by s-confirm: best of 1, mean 0.7750 over 2 fresh seeds." in said
    version = store.client.get_model_version(MODEL, "1")
    assert version.tags["confirmed"].startswith("yes, by s-confirm")


@pytest.mark.usefixtures("good")
def test_an_alias_that_does_not_answer_is_no_missing_champion(
    store: TrackingStore, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails while it is asked for the champion must not pass for one without."""
    run_id, _ = finished_run(store, context, 1, POOR)

    def fail(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("the database is locked")

    monkeypatch.setattr(store.client, "get_model_version_by_alias", fail)
    with pytest.raises(UserError, match=r"a store or disk failed \(the database is locked\)"):
        promote(store, run_id, NOW)
    monkeypatch.undo()
    assert champion(store) == "1"
