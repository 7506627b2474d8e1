"""The search and its books: studies in Optuna, runs and models in MLflow, on top of `speaker`."""
