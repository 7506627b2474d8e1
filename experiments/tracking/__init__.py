"""What was tried: runs, models and their ranking in MLflow."""
