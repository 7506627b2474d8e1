"""What an Optuna trial says of itself: the names of its attributes, and its state for each outcome.

What a sampler should hear of a trial that has no fair score: Optuna's TPE ignores failed trials, so
that it would propose their like again, and takes a pruned trial's last value for its score, as if
the architecture were weak. A trial that collapsed or does not fit into memory is told as pruned
with a broken constraint, named by its outcome, instead: TPE puts such trials behind all others, and
no accuracy is made up. The GP sampler looks at complete trials alone, and the random one at none.
"""

from optuna.trial import FrozenTrial, TrialState

from speaker.training.outcome import Outcome

RUN_ID, PRESET, REPLICATE, LOSSES = "mlflow.run_id", "preset", "replicate", "device.losses"
INDEX = "preset.index"  # among the study's presets
OUTCOME, STEPS = "outcome", "steps"  # older trials lack these
RESCUE_OF, OVERRIDES = "rescue.of", "overrides"  # see rescue.py
REPEATS, SEEDED_AS = "repeats", "seeded.as"  # of a failed trial's repetition: see rescue.py
OPTUNA_STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.COLLAPSED: TrialState.PRUNED,
    Outcome.INFEASIBLE: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
}  # an interrupted trial keeps running, for Optuna
BROKEN = 1.0  # of a constraint: above 0
CONSTRAINED = (Outcome.COLLAPSED, Outcome.INFEASIBLE)


def outcome_of(trial: FrozenTrial) -> Outcome:
    """Return how a finished trial ended."""
    by_state = {state: outcome for outcome, state in reversed(OPTUNA_STATES.items())}
    return Outcome(trial.user_attrs.get(OUTCOME, by_state[trial.state]))
