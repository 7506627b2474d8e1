"""What runs, experiments and models are called in MLflow, and the names of their tags and metrics
that are not training's own (those are in speaker/training/metrics.py). Old stores hold these, too,
or what FORMER says that they were called.
"""

from speaker.training import metrics

EXPERIMENT = "speaker-classifier"
MODEL = "speaker-classifier"
CHAMPION = "champion"
MODEL_FOLDER = "model"  # of a run's artifacts
REPORT = "report.html"  # of a study's run's artifacts
DESCRIPTION = "mlflow.note.content"  # what the UI shows above a run, in Markdown

KIND, KIND_STUDY, KIND_TRIAL = "kind", "study", "trial"
STUDY, STUDY_ID, TRIAL = "study", "study.id", "trial"
IMPORT = "import"  # of a run: which study, by its id and its name here, it was taken in with
IMPORTED = "imported"  # of a study's run: that its import came to its end
CONFIRMS = "confirms"  # of a study's run: the study whose best points it trains again
PARENT = "mlflow.parentRunId"
PRESET, REPLICATE, RESCUE_OF = "preset", "replicate", "rescue.of"
REPEATS = "repeats"  # of a trial's run: the trial that failed and that it repeats
STATE, REASON, RUNNING = "state", "state.reason", "running"
POINT, FINGERPRINT = "point", "config.fingerprint"
FILES = "files.sha256"  # of a logged model: of all its files together
PROMOTED_TAG, DEMOTED, FORCED = "promoted", "demoted", "forced"  # of a version: when, and why
ACCURACY, CONFIRMED = "accuracy", "confirmed"  # of a version, in words
FALLBACKS, SHA256, HITS = "device.fallbacks", "weights.sha256", "valid.hits"
# Of a run that was trained again: the verdict, what came of it, and what was not as before.
REPLAY, REPLAY_WORDS, REPLAY_DIFFERS = "replay", "replay.words", "replay.differs"
STARTED_OVER = "started_over"  # of a run: why its training began anew
REMOVED = "weights.removed"  # of a run: when and why, and what they were
AGAIN = "weights.again"  # the command that makes them again
UTTERANCES = "valid.utterances"  # how many an accuracy is measured on
SPEAKERS = "corpus.speakers"
BEST_LOSS, BEST_STEP = "best.loss", "best.step"  # tags: a metric of one point is one more picture

# The metrics of one point are those that the UI's table is sorted by.
BEST_WHOLE, BEST_CROPS = "best/whole", "best/crops"  # of a study's run, after so many ended trials
SECONDS, PARAMETERS = "total/seconds", "total/parameters"

# What metrics, and the tags of models that repeat them, were called before the end of 2026.
FORMER = {
    metrics.ACCURACY_WHOLE: "valid/accuracy_whole",
    metrics.ACCURACY_CROPS: "valid/accuracy_crops",
    metrics.LOSS_WHOLE: "valid/loss_whole",
    metrics.TRAIN_LOSS: "train/loss",
    metrics.TRAIN_ACCURACY: "train/accuracy",
    metrics.STEPS_PER_S: "speed/steps_per_s",
    metrics.UTTERANCES_PER_S: "speed/valid_uttr_per_s",
    metrics.CROPS_PER_S: "speed/valid_crops_per_s",
    BEST_WHOLE: "best/accuracy_whole",
    BEST_CROPS: "best/accuracy_crops",
    SECONDS: "speed/seconds",
    PARAMETERS: "model/parameters",
}
PRESENT = {former: name for name, former in FORMER.items()}
