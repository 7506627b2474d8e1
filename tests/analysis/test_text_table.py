from experiments.analysis.text_table import Column, markdown, text_lines

ODD = ("a\nb", "\x1b[31m")


def test_a_row_is_one_line_that_no_terminal_obeys_whatever_names_are_in_it() -> None:
    columns = [Column("who", ODD, is_words=True), Column("rate", ("0.5", "0.25"))]
    assert text_lines(columns, 80) == [
        "who      rate",
        "a\\nb      0.5",
        "\\x1b[31m 0.25",
    ]


def test_so_is_one_of_markdown() -> None:
    lines = markdown(("who",), [(each,) for each in ODD]).splitlines()
    assert lines == ["| who |", "| --- |", "| a b |", "| \\x1b[31m |"]
