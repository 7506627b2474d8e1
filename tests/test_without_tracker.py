"""`speaker` alone: with Optuna, MLflow and the search's code removed it prepares, checks and predicts."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import soundfile

from speaker.sources.demo import draw_voice, synthesize
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

REMOVED = ("optuna", "mlflow", "alembic", "sqlalchemy")


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """The environment of an installation that has all but what was removed."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.lower().startswith(REMOVED):
            (packages / path.name).symlink_to(path)
    (packages / "speaker").symlink_to(ROOT / "speaker")
    return {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}


def speaker(folder: Path, environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-S", "-m", "speaker", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.stdout if done.returncode == 0 else f"{done.returncode}: {done.stderr}"


def test_what_was_removed_is_gone(alone: dict[str, str], tmp_path: Path) -> None:
    for name in (*REMOVED, "experiments"):
        command = [sys.executable, "-S", "-c", f"import {name}"]
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, check=False)
        assert done.returncode == 1
        assert b"ModuleNotFoundError" in done.stderr


def test_speaker_prepares_checks_and_predicts_alone(alone: dict[str, str], tmp_path: Path) -> None:
    for name in ("anna", "ben"):
        folder = tmp_path / "audio" / name
        folder.mkdir(parents=True)
        for number in range(4):
            sound = synthesize(draw_voice(name), f"{name}{number}").numpy()
            soundfile.write(folder / f"{number}.wav", sound, 16_000)
    words = ("--audio", "audio", "--out", "corpus", "--test-share", "0.25", "--workers", "1")
    assert "Prepared 6 labelled and 2 test utterances" in speaker(
        tmp_path, alone, "prepare", *words
    )
    assert "figure      corpus.png" in speaker(tmp_path, alone, "check", "corpus")
    save = (
        "from pathlib import Path\n"
        "from speaker.config import TrialConfig\n"
        "from speaker.model.classifier import SpeakerClassifier\n"
        "from speaker.model.saved_model import save_model\n"
        "config = TrialConfig(d_model=8)\n"
        "weights = SpeakerClassifier(config, 40, 2).state_dict()\n"
        "save_model(Path('model'), weights, config, 40, ('anna', 'ben'), '')"
    )
    subprocess.run([sys.executable, "-S", "-c", save], cwd=tmp_path, env=alone, check=True)
    predict = ("predict", "--data", "corpus", "--device", "cpu")
    assert "Wrote 2 predictions" in speaker(tmp_path, alone, *predict, "--model", "model")
    refused = speaker(tmp_path, alone, *predict, "--model", "champion")
    assert refused.startswith("2: error: --model must be a folder with a saved model")
