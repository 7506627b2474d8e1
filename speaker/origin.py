"""Where a result comes from: commit, versions and device, as tags of a run."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from speaker.common.devices import Compute

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "optuna", "mlflow", "numpy", "sqlalchemy")


def origin(compute: Compute) -> dict[str, str]:
    """Return what must be known to get a run's numbers again, besides its config and corpus."""
    tags = {f"version.{name}": version(name) for name in PACKAGES}
    tags["version.python"] = platform.python_version()
    tags["device"] = compute.describe()
    if compute.fallbacks:
        tags["device.fallbacks"] = "; ".join(compute.fallbacks)
    if commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _git(*arguments: str) -> str:
    """Return what git says, or nothing: the program may be missing, and the code may have come without its history."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
