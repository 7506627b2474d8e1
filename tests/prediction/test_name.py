import csv
import json
from pathlib import Path

import pytest
import soundfile
import torch

from experiments import promotion
from experiments.context import TrainingContext
from experiments.promotion import Request
from experiments.registry.versions import download_model
from experiments.tracking.names import CHAMPION
from experiments.tracking.store import TrackingStore
from speaker.config import TrialConfig
from speaker.model.classifier import SpeakerClassifier
from speaker.model.saved_model import load_model, save_model
from speaker.prediction.name import likeliest
from speaker.sources.demo import draw_voice, synthesize
from speaker.sources.extraction import read_features
from tests.models import finished_run
from tests.warm import run_warm

SPEAKERS = tuple(f"id{number}" for number in range(7))
CONFIG = TrialConfig(d_model=8)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weights = SpeakerClassifier(CONFIG, 40, 7).state_dict()
    save_model(tmp_path / "model", weights, CONFIG, 40, SPEAKERS, "")
    for name in ("a", "b"):
        sound = synthesize(draw_voice(name), name).numpy()
        soundfile.write(tmp_path / f"{name}.wav", sound, 16_000)
    return tmp_path


def test_the_likeliest_are_the_models_own(home: Path) -> None:
    trained = load_model(home / "model")
    mels = read_features(home / "a.wav")
    found = likeliest(trained, mels)
    with torch.inference_mode():
        probabilities = trained.model(mels[None])[0].softmax(0).tolist()
    order = sorted(range(7), key=lambda number: -probabilities[number])
    assert [who for who, _ in found] == [SPEAKERS[number] for number in order[:5]]
    assert [p for _, p in found] == pytest.approx(sorted(probabilities)[:1:-1], abs=1e-6)


@pytest.mark.slow
def test_text_json_and_csv_say_the_same(home: Path) -> None:
    words = ("speaker", "name", "a.wav", "b.wav", "--model", "model")
    text, as_json, as_csv = (
        run_warm(home, *words, *more) for more in ((), ("--json",), ("--csv",))
    )
    records = json.loads(as_json.stdout)
    assert [record["file"] for record in records] == ["a.wav", "b.wav"]
    rows = list(csv.DictReader(as_csv.stdout.splitlines()))
    said = [each for record in records for each in record["speakers"]]
    assert [row["Speaker"] for row in rows] == [each["speaker"] for each in said]
    assert [row["Rank"] for row in rows] == [*"12345", *"12345"]
    shown = [line.split() for line in text.stdout.splitlines() if line.startswith("  ")]
    assert shown == [[f"{each['probability']:.4f}", each["speaker"]] for each in said]


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_done(home: Path) -> None:
    (home / "page.wav").write_text("<html>not found</html>")
    (home / "empty").touch()
    words = ("page.wav", "b.wav", "no.wav", "empty", "model/model.json")
    done = run_warm(home, "speaker", "name", *words, "--model", "model")
    assert done.returncode == 2
    assert done.stdout.startswith("b.wav\n")
    *left_out, last = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in left_out] == ["left out"] * 4
    assert "page.wav" in left_out[0]
    assert "no.wav" in left_out[1]
    assert "empty: a recording must be decodable, but is empty" in left_out[2]
    assert "begins with b'{" in left_out[3]
    assert last.startswith("error: every file must be a recording that can be read, but 4 of 5")


@pytest.mark.slow
def test_a_registered_model_is_asked_for_where_there_is_none(home: Path) -> None:
    done = run_warm(home, "speaker", "name", "a.wav")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there are no runs yet")


@pytest.mark.slow
def test_the_champion_names_recordings_as_its_copy_in_a_folder_does(
    home: Path, context: TrainingContext
) -> None:
    (home / "mlruns").mkdir()
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    run_id, _ = finished_run(store, context, 0, "111000")
    promotion.promote(store, run_id, Request("2026-11-28 04:00:00 UTC"))
    download_model(store, CHAMPION, home / "fetched")
    words = ("speaker", "name", "a.wav", "b.wav", "--json")
    champion = run_warm(home, *words, "--model", "champion")
    assert champion.returncode == 0, champion.stderr
    assert [record["file"] for record in json.loads(champion.stdout)] == ["a.wav", "b.wav"]
    assert champion.stdout == run_warm(home, *words, "--model", "fetched").stdout
    assert champion.stdout == run_warm(home, *words).stdout, "it is the model where none is named"
