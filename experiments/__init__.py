"""The search and its records: studies in Optuna, runs and models in MLflow, on top of `speaker`."""
