"""Speaker classification from log-mel features: the model, its data and how it learns.

The lines of requirements.txt that say `speaker` are what this package needs. It never imports
optuna, mlflow or `experiments`.
"""
