"""What is printed as the next commands works where it is printed."""

import subprocess
import sys
from pathlib import Path

import pytest

from speaker.common.paths import PROGRAM, next_commands
from tests.helpers import ROOT, environment

NEXT = ("experiments promote --study none", "speaker check none")


def test_in_the_programs_folder_a_command_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(ROOT)
    assert next_commands(*NEXT).splitlines() == [f"  python -m {each}" for each in NEXT]
    assert PROGRAM == ROOT


@pytest.mark.parametrize("known", ["", "/elsewhere"])
def test_elsewhere_the_shell_is_told_where_the_program_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", known)
    lines = next_commands(*NEXT)
    assert lines.splitlines()[0].startswith("  export PYTHONPATH=")
    kept = {**environment(), "PYTHONPATH": known}
    script = f'python() {{ "{sys.executable}" "$@"; }}\n{lines}'
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=kept, capture_output=True, text=True, check=False
    )
    assert "there are no runs yet" in done.stderr
    assert "No module named" not in done.stderr
    assert done.stderr.count("error: ") == len(NEXT)
    monkeypatch.setenv("PYTHONPATH", f"{known}:{ROOT}")
    assert next_commands(*NEXT).splitlines() == [f"  python -m {each}" for each in NEXT]
