"""A real browser, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def seen(address: str, folder: Path) -> str:
    """Return a page as Chromium has it once its scripts have run."""
    assert CHROMIUM
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1900,900",
    ]
    command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=30000", "--dump-dom"]
    return subprocess.run(
        [*command, address], capture_output=True, text=True, check=True, timeout=300
    ).stdout
