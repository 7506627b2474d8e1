"""What runs, experiments and models are called in MLflow, and the names of their tags and metrics
that are not training's own (those are in speaker/training/metrics.py). Old stores hold these, too.
"""

EXPERIMENT = "speaker-classifier"
MODEL = "speaker-classifier"
CHAMPION = "champion"
MODEL_FOLDER = "model"  # of a run's artifacts
REPORT = "report.html"  # of a study's run's artifacts
DESCRIPTION = "mlflow.note.content"  # what the UI shows above a run, in Markdown

KIND, KIND_STUDY, KIND_TRIAL = "kind", "study", "trial"
STUDY, STUDY_ID, TRIAL = "study", "study.id", "trial"
CONFIRMS = "confirms"  # of a study's run: the study whose best points it trains again
PARENT = "mlflow.parentRunId"
PRESET, REPLICATE, RESCUE_OF = "preset", "replicate", "rescue.of"
STATE, REASON, RUNNING = "state", "state.reason", "running"
POINT, FINGERPRINT = "point", "config.fingerprint"
FILES = "files.sha256"  # of a logged model: of all its files together
PROMOTED_TAG, DEMOTED, FORCED = "promoted", "demoted", "forced"  # of a version: when, and why
ACCURACY, CONFIRMED = "accuracy", "confirmed"  # of a version, in words
FALLBACKS, SHA256, HITS = "device.fallbacks", "weights.sha256", "valid.hits"

SECONDS, PARAMETERS = "speed/seconds", "model/parameters"
BEST_WHOLE, BEST_CROPS = "best/accuracy_whole", "best/accuracy_crops"
BEST_LOSS, BEST_STEP = "best/loss_whole", "best/step"
