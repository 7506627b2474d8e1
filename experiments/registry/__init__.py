"""Models in charge: versions in MLflow's registry, checked, served, and called champion."""
