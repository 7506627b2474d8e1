"""Speaker classification from log-mel features: the model, its data and how it learns.

This package needs torch, numpy, safetensors, filelock and tqdm; it never imports optuna, mlflow or
`experiments`.
"""
