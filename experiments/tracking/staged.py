"""What kills leave of files that MLflow was keeping: it writes them under another name first."""

import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

STAGED = ".artifact.uploading."  # how MLflow 3.17 begins the names
SOON_S = 60.0  # that a file of a few megabytes takes at the most


def remove_staged(artifact_uri: str, older_than: float = 0.0) -> None:
    """Remove what kills have left among a run's artifacts, where these lie on this machine.

    Where others may be writing there, only what is `older_than` so many seconds.
    """
    for path in staged(artifact_uri, older_than):
        path.unlink(missing_ok=True)


def staged(artifact_uri: str, older_than: float = SOON_S) -> list[Path]:
    """Return the files that were being kept among a run's artifacts, for so many seconds."""
    parts = urlsplit(artifact_uri)
    if parts.scheme != "file":
        return []
    then = time.time() - older_than
    found = sorted(Path(unquote(parts.path)).rglob(f"{STAGED}*"))
    return [path for path in found if path.stat().st_mtime <= then]
