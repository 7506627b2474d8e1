"""The short form of `python -m benchmarks.fuzz`: a mutated file is refused in one line, or read
rightly; nothing that a checksum lies over is used changed.
"""

import random
from pathlib import Path

import pytest

from benchmarks.fuzz import cases
from benchmarks.fuzz.cases import FAILURES, Bench
from benchmarks.fuzz.examples import Example, make_all
from benchmarks.fuzz.mutations import mutated
from benchmarks.fuzz.pool import run_cases
from speaker.common.errors import UserError

SEED = 13


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Example]]:
    root = tmp_path_factory.mktemp("fuzz") / "root"
    root.mkdir()
    return root, make_all(root)


@pytest.mark.slow
def test_mutated_files_of_every_format_are_refused_or_read_rightly(
    examples: tuple[Path, list[Example]],
) -> None:
    root, whole = examples
    found = [*run_cases((root, whole, SEED), range(10 * len(whole)), 1)]
    assert [verdict for verdict in found if verdict.kind in FAILURES] == []
    assert {verdict.form for verdict in found} == {example.name for example in whole}
    assert sum(verdict.kind == "refused" for verdict in found) > len(found) // 2


def test_a_case_is_drawn_from_its_number_alone() -> None:
    data = b'{"a": [1, 2, {"b": null}]}'
    for number in range(50):
        first, again = (mutated(data, "json", random.Random(number)) for _ in range(2))  # noqa: S311
        assert first == again


def spell(folder: Path) -> object:
    """Read a file as a careless program would."""
    text = (folder / "f").read_text()
    if text.startswith("no"):
        raise UserError("no\nsuch thing")
    return int(text)


@pytest.mark.parametrize(
    ("text", "is_sealed", "kind", "said"),
    [
        ("12", True, "same", ""),
        ("13", False, "other", ""),
        ("13", True, "wrong", ""),
        ("no", True, "refused", r"no\nsuch thing"),
        ("x", True, "exception", "ValueError"),
    ],
)
def test_each_verdict_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    is_sealed: bool,
    kind: str,
    said: str,
) -> None:
    (tmp_path / "f").write_text("12")
    bench = Bench(tmp_path, [Example("f", ".", "f", spell, "", is_sealed)], SEED)
    monkeypatch.setattr(cases, "PATHS", 0)
    monkeypatch.setattr(cases, "mutated", lambda *_: ("by hand", text.encode()))
    verdict = bench.run(0)
    assert (verdict.kind, verdict.mutation) == (kind, "by hand")
    assert verdict.said.startswith(said)
    assert (tmp_path / "f").read_text() == "12"


def wait_or_die(folder: Path) -> object:
    text = (folder / "f").read_text()
    while text == "wait":
        pass
    if text == "die":
        raise SystemExit(3)
    return len(bytes(int(text)))


@pytest.mark.parametrize(
    ("text", "kind"), [("wait", "hang"), ("die", "crash"), (str(2 << 30), "memory")]
)
def test_what_a_process_does_not_survive_costs_its_case_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_text("12")
    monkeypatch.setattr(cases, "PATHS", 0)
    monkeypatch.setattr(cases, "mutated", lambda *_: ("", text.encode()))
    monkeypatch.setattr("benchmarks.fuzz.pool.LIMIT_S", 0.2)
    example = Example("f", ".", "f", wait_or_die)
    kinds = [verdict.kind for verdict in run_cases((root, [example], SEED), range(2), 1)]
    assert kinds == [kind, kind]
