"""Where a result comes from: commit, versions and device."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from speaker.common.devices import Compute

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy")


def provenance(compute: Compute, packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return what must be known to get a result again, besides its config and corpus.

    `packages` are the installed packages whose versions matter. The commit is missing where the
    code came without its history.
    """
    facts = {f"version.{name}": version(name) for name in packages}
    facts["version.python"] = platform.python_version()
    facts["device"] = compute.describe()
    if compute.fallbacks:
        facts["device.fallbacks"] = "; ".join(compute.fallbacks)
    if commit := _git("rev-parse", "HEAD"):
        facts["mlflow.source.git.commit"] = commit
        facts["git.dirty"] = str(
            bool(_git("status", "--porcelain", "--untracked-files=no"))
        ).lower()
    return facts


def _git(*arguments: str) -> str:
    """Return what git says, or nothing where git or the history is missing."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
