"""A search as most people write it: Optuna's defaults, and its callback that logs to MLflow.

What live.py times searches against. `pip install --no-deps optuna-integration==5.0.0` first.
"""

import argparse
import json
from pathlib import Path

import optuna
from optuna.samplers import TPESampler
from optuna_integration.mlflow import MLflowCallback

from benchmarks.search.table import CORPUS_BUDGET
from experiments.context import load_context
from experiments.proposals.space import HOMEWORK
from speaker.training.train import train


def main() -> None:
    """Search in the folder that this is started in, and print the best point as JSON."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("data", type=Path)
    flags.add_argument("--trials", type=int, required=True)
    flags.add_argument("--steps", type=int, required=True, help="of each training")
    flags.add_argument("--seed", type=int, required=True)
    arguments = flags.parse_args()
    base = CORPUS_BUDGET.with_steps(arguments.steps)
    context = load_context(arguments.data, "cpu", "auto", Path("mlruns"))

    def objective(trial: optuna.Trial) -> float:
        config = HOMEWORK.sample(trial, base).replace(seed=trial.number)
        result = train(
            config, context.pack, context.protocol, lambda _step, _metrics: False, context.compute
        )
        return result.scores()[0] or 0.0

    study = optuna.create_study(
        storage="sqlite:///optuna.db",
        sampler=TPESampler(seed=arguments.seed),
        direction="maximize",
    )
    callback = MLflowCallback(tracking_uri="sqlite:///mlflow.db", metric_name="accuracy")
    study.optimize(objective, n_trials=arguments.trials, callbacks=[callback])
    print(json.dumps({**study.best_params, "accuracy": study.best_value}))


if __name__ == "__main__":
    main()
