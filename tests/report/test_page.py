import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.analysis.confirmation import Confirmation, Confirmed
from experiments.analysis.leaderboard import Row
from experiments.proposals.curves import Estimate
from experiments.report.page import BEGINNING, LISTED, render
from experiments.report.study import Study
from experiments.tracking.validation import Prediction
from speaker.config import HOMEWORK_BASELINE, HOMEWORK_EDITED
from tests.browser import needs_chromium, seen
from tests.report.rows import ended, mixed, trial

EDITED = {
    name: (getattr(HOMEWORK_BASELINE, name), getattr(HOMEWORK_EDITED, name))
    for name in ("d_model", "nhead", "num_layers", "activation")
}
QUESTIONS = [
    "What won?", "Is it real?", "How did the search get there?", "What mattered?",
    "What goes together?", "What does it cost?", "Would longer training change it?",
    "Who is confused with whom?", "What was tried?", "Where do the numbers come from?", "What next?",
]  # fmt: skip


def corners() -> list[Row]:
    """Return the 16 corners between the homework's points."""
    return [
        trial(n, 0.9 - n / 50, preset="four-edits", replicate="0",
              values={name: pair[n >> place & 1] for place, (name, pair) in enumerate(EDITED.items())})
        for n in range(16)
    ]  # fmt: skip


def training(count: int) -> list[Row]:
    """Return trials that differ in what the space `training` varies, too."""
    return [
        trial(n, 0.5 + n / 4000, values={"lr": 1e-4 * 1.01**n, "dropout": n % 3 / 10,
              "d_model": 80 + n % 4, "norm_first": n % 2 == 0, "weight_decay": n / 1000,
              "batch_size": 16 << n % 3, "dim_feedforward": 128 << n % 2},
              curve=tuple((step / 35, 0.5 - 0.5 / step) for step in range(1, 36)))
        if n % 3 else ended(n, "pruned", 0.4, curve=((0.1, 0.1), (0.2, 0.4)))
        for n in range(count)
    ]  # fmt: skip


STUDIES = {
    "mixed": mixed(),
    "nothing": [],
    "one": [trial(0)],
    "ties": [trial(n, 1.0, is_tied=True, values={"nhead": 1 + n}) for n in range(4)],
    "pruned": [ended(n, "pruned", 0.3, values={"nhead": 1 + n}) for n in range(3)],
    "without a score": [ended(0, "failed"), ended(1, "infeasible")],
    "old": [replace(row, hits=(), expected=None, curve=(), crops=None) for row in mixed()],
    "zero": [trial(0, 0.0, seconds=0.0, parameters=0), trial(1, 0.0, seconds=0.0, parameters=0)],
    "training": training(40),
    "edits": corners(),
}


@pytest.fixture(scope="module")
def page() -> str:
    """The page of a study with one of each."""
    return render(Study("s", mixed()))


class Reader(HTMLParser):
    """Collects a page's elements and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@pytest.mark.parametrize("rows", STUDIES.values(), ids=STUDIES.keys())
def test_every_study_has_a_page_that_answers_each_question(rows: list[Row]) -> None:
    page = render(Study("s", rows))
    assert re.findall(r"<h2>([^<]*)</h2>", page) == QUESTIONS
    answers = re.findall(r"<p class=answer>([^<]*)</p>", page)
    assert len(answers) == len(QUESTIONS)
    assert all(answer.strip() for answer in answers)
    assert page.startswith(BEGINNING)
    assert not re.search(r"\bnan\b|>None<", page)


def test_a_study_always_has_the_same_page(page: str) -> None:
    assert page == render(Study("s", mixed()))


def test_a_page_needs_nothing_else(page: str) -> None:
    elements = Reader(page).elements
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), "within the page"
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    policies = [each["content"] for tag, each in elements if "http-equiv" in each]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ]


def test_every_figure_says_what_it_shows(page: str) -> None:
    elements = Reader(page).elements
    drawn = [each for tag, each in elements if tag == "svg"]
    assert len(drawn) == 8
    assert all(each["role"] == "img" and each["aria-label"] for each in drawn)
    ids = [each["id"] for _, each in elements if "id" in each]
    assert len(ids) == len(set(ids))


def test_light_dark_narrow_and_paper_are_thought_of(page: str) -> None:
    for rule in ("prefers-color-scheme:dark", "@media print", "max-width:600px"):
        assert rule in page
    used = set(re.findall(r"var\((--\w+)\)", page))
    light, dark = re.findall(r":root\{([^}]*)\}", page)[:2]
    for theme in (light, dark):
        assert {name for name in used if f"{name}:" not in theme} == {"--heat"}, "a cell's own"


def test_what_comes_from_the_study_is_escaped() -> None:
    evil = '<script>alert("x")</script>&$x$'
    rows = [
        trial(1, 0.8, point=evil, preset=evil, replicate=evil, values={"pooling": evil}),
        trial(2, 0.7, values={"pooling": "mean"}),
        ended(3, "pruned", 0.2, reason=evil, point=evil),
    ]
    words = ("corpus", "corpus.digest", "device", "git.dirty", "sampler", "protocol.whole",
             "version.x", "mlflow.source.git.commit")  # fmt: skip
    found = Confirmation([Confirmed(evil, (0.5, 0.6), 0.0, 0.1)], Estimate(0.5, 0.1))
    study = Study(
        evil, rows, dict.fromkeys(words, evil), {"steps": evil, "space.x": evil}, found, evil, evil,
        (Prediction(evil, 100, evil, "other"), Prediction(evil, 120, evil, evil)),
    )  # fmt: skip
    page = render(study)
    assert page.count("<script") == 1, "ours"
    assert "&lt;script&gt;" in page


def test_the_homeworks_points_are_among_the_best_wherever_they_rank() -> None:
    rows = [trial(n, 0.9 - n / 100) for n in range(1, 20)] + [
        trial(0, 0.1, preset="homework-baseline")
    ]
    (first,) = re.findall(r"<h2>Is it real.*?</section>", render(Study("s", rows)), re.DOTALL)
    assert "#12 d80" in first
    assert "#13 d80" not in first
    assert "#0 d80" in first


def test_all_trials_are_listed_with_rank_and_reason(page: str) -> None:
    (table,) = re.findall(r"<h2>What was tried.*?</section>", page, re.DOTALL)
    lines = [re.findall(r"<td[^>]*>([^<]*)", line) for line in table.split("<tr>")[2:]]
    assert [line[:2] for line in lines] == [
        ["1", "#3"], ["1", "#2"], ["3", "#4"], ["4", "#0"], ["", "#1"], ["", "#5"], ["", "#6"],
        ["", "#7"],
    ]  # fmt: skip
    assert lines[5][-1] == "collapsed; why 5"
    assert lines[4][3] == "0.450", "as far as it came"


def test_heat_tables_count_and_fill_nothing_in(page: str) -> None:
    (table,) = re.findall(r"<table class=heat.*?</table>", page, re.DOTALL)
    cells = re.findall(r"<td([^>]*)>([\d.]*) ?(?:<small>\((\d+)\)</small>)?", table)[1:]
    filled = [(mean, count) for style, mean, count in cells if style]
    assert sorted(filled) == [("0.50", "1"), ("0.60", "1"), ("0.78", "1"), ("0.80", "1")]
    assert len(cells) == 9, "3 widths by 3 activations"


def test_confused_speakers_and_accuracy_by_length_are_shown() -> None:
    told = [("a", "b"), ("a", "b"), ("a", "a"), ("b", "a"), *[("b", "b")] * 3, ("c", "c")]
    kept = tuple(Prediction(f"{n}.pt", 100 + n, *pair) for n, pair in enumerate(told))
    page = render(replace(Study("s", mixed()), predictions=kept))
    (section,) = re.findall(r"<h2>Who is confused.*?</section>", page, re.DOTALL)
    assert (
        "Of 8 validation utterances #3 told 3 wrong. Most often it took a for b: 2 of 3 utterances."
        " Of the shortest quarter (100 to 101 frames) 0.000 were right, of the longest (106 to 107)"
        " 1.000." in section
    )
    pairs, worst = (
        [re.findall(r"<td[^>]*>([^<]*)", line) for line in table.split("<tr>")[2:]]
        for table in re.findall(r"<table.*?</table>", section, re.DOTALL)
    )
    assert pairs == [["2", "3", "a", "b"], ["1", "4", "b", "a"]]
    assert worst == [["1", "3", "a"], ["3", "4", "b"], ["1", "1", "c"]]
    assert "it cannot be told" in render(Study("s", mixed()))


@needs_chromium
def test_a_click_on_a_head_sorts_the_table(page: str, tmp_path: Path) -> None:
    clicks = """<script>for (const column of [1, 1, 3]) {
      const table = document.querySelector(".sortable");
      table.tHead.rows[0].cells[column].click();
      const shown = [...table.tBodies[0].rows].map(row => row.cells[1].textContent);
      document.body.append("clicked " + shown.join("").replaceAll("#", ""));
    }</script></html>"""
    place = tmp_path / "page.html"
    # Without its policy, so that the test's script runs, too.
    place.write_text(page.replace("http-equiv", "name").replace("</html>", clicks))
    number, down, accuracy = re.findall(r"clicked (\d+)", seen(place.as_uri(), tmp_path))
    assert number == "01234567"
    assert down == "76543210"
    assert accuracy == "51042376", "0.1 first, those without a number last, as they were"
    place.write_text(page.replace("</html>", clicks))
    assert "clicked 0" not in seen(place.as_uri(), tmp_path), "no other script runs"


def test_the_edits_are_shown_where_all_were_trained() -> None:
    assert "four edits earned" in render(Study("s", corners()))
    assert "four edits earned" not in render(Study("s", corners()[1:]))


def test_a_confirmation_is_shown_instead_of_its_command(page: str) -> None:
    points = [
        Confirmed("d256 fresh", (0.7, 0.72), 0.0, 0.01),
        Confirmed("d80 fresh", (0.5,), 0.2, float("nan")),
    ]
    confirmed = replace(Study("s", mixed()), confirmation=Confirmation(points, Estimate(0.7, 0.02)))
    shown = render(confirmed)
    assert "d80 fresh" in shown
    assert not re.search(r"\bnan\b", shown)
    assert "experiments confirm" not in shown
    assert "experiments confirm" in page


def test_commands_name_the_study_as_a_shell_takes_it() -> None:
    page = render(Study("my study", mixed(), {"corpus": "demo"}))
    assert "python -m experiments promote --study &#x27;my study&#x27;" in page
    assert "python -m experiments confirm --study &#x27;my study&#x27;\n" in page
    assert "python -m speaker predict --data mlruns/demo --model champion" in page
    assert "promote" not in render(Study("s", []))


def test_a_large_study_has_a_small_page(page: str) -> None:
    large = render(Study("s", training(LISTED + 500)))
    assert len(large.encode()) < 500_000
    assert "500 more are not listed" in large
    assert "not listed" not in page
