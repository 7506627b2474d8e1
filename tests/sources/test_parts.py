import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from speaker.data.corpus import Corpus
from speaker.sources.parts import HOMEWORK, Part, find_parts, parts_of_urls, read_manifest
from tests.helpers import AA, AB, AC, AD, refused
from tests.sources.test_archive import write_parts


def test_the_homeworks_parts() -> None:
    assert [part.name for part in HOMEWORK] == [AA, AB, AC, AD]
    assert parts_of_urls([part.url for part in HOMEWORK]) == HOMEWORK


@pytest.mark.parametrize("names", [[AA], [AA, AB], ["Dataset.tar.gz"], ["one.001", "one.002"]])
def test_orders_that_are_right(names: list[str]) -> None:
    assert [
        part.name for part in parts_of_urls([f"https://host/a/{name}?b=c/d" for name in names])
    ] == names


ORDERS: list[tuple[list[str], str]] = [
    ([], "at least one part"),
    ([AB], f"part 1 must be '{AA}', but is '{AB}'"),
    ([AB, AA], f"part 1 must be '{AA}', but is '{AB}'"),
    ([AA, AC], f"part 2 must be '{AB}', but is '{AC}'"),
    ([AA, AA], f"part 2 must be '{AB}', but is '{AA}'"),
    ([AA, AB, AB], f"part 3 must be '{AC}', but is '{AB}'"),
    ([AA, "Other.tar.gz.partab"], f"part 2 must be '{AB}', but is 'Other.tar.gz.partab'"),
    ([AA, "Dataset.tar.gz"], f"part 2 must be '{AB}', but is 'Dataset.tar.gz'"),
    (["one.001", "one.001"], "part 2 must be no more, but is 'one.001'"),
    (["a", "a", "b"], "part 2 must be 'b', but is 'a'"),
]


@pytest.mark.parametrize(("names", "rule"), ORDERS, ids=range(len(ORDERS)))
def test_orders_that_are_wrong(names: list[str], rule: str, tmp_path: Path) -> None:
    urls = [f"https://host/{name}" for name in names]
    assert rule in refused(lambda: parts_of_urls(urls))
    (tmp_path / "m.json").write_text(json.dumps({"parts": [{"url": url} for url in urls]}))
    message = refused(lambda: read_manifest(tmp_path / "m.json"))
    assert rule in message
    assert f"{tmp_path / 'm.json'}: parts" in message


BAD_URLS = [
    "", "x", "file:///etc/passwd", "ftp://host/x", "//host/x", "https:///x", "https://host", "https://host/",
    "https://host/a/..", "https://host/.hidden", "https://host/a%2Fb", "https://host/a b", "https://host/a\nb",
    "https://host:0/a", "https://host:99999/a", "https://host:x/a", "https://[::1/a", "https://host/" + "a" * 201,
    "https://me:secret@host/a", "https://me@host/a", "ftp://me:secret@host/a", "https://host/" + "a/" * 3000 + "a",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS, ids=range(len(BAD_URLS)))
def test_urls_that_are_none(url: str) -> None:
    message = refused(lambda: parts_of_urls([url]))
    assert "URL 1 must" in message
    assert "secret" not in message
    assert len(message) < 500


def test_reads_a_manifest(tmp_path: Path) -> None:
    entries = [
        {"url": f"http://host/{AA}", "size": 7, "sha256": "AB" * 32},
        {"url": f"http://host/{AB}"},
    ]
    (tmp_path / "m.json").write_text(json.dumps({"parts": entries}))
    first, second = read_manifest(tmp_path / "m.json")
    assert first == Part(f"http://host/{AA}", AA, 7, "ab" * 32)
    assert second == Part(f"http://host/{AB}", AB)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[" * 99_999, "must be JSON"),
        ('{"parts": [], "parts": []}', "the key 'parts' stands twice"),
        ('{"parts": [{"url": "http://h/a", "url": "http://h/b"}]}', "the key 'url' stands twice"),
        ('{"parts": [{"url": "http://h/a", "size": ' + "9" * 5000 + "}]}", "must be JSON"),
        ("[]", "must be an object, but is list"),
        ("{}", "the key 'parts' is missing"),
        ('{"parts": {}}', "parts must be a list, but is dict"),
        ('{"parts": []}', "parts: there must be at least one part"),
        ('{"parts": [], "sha256": 1}', "the keys must be of parts, but one is 'sha256'"),
        ('{"parts": [3]}', "parts[0] must be an object, but is int"),
        ('{"parts": [{}]}', "parts[0]: the key 'url' is missing"),
        (
            '{"parts": [{"url": "http://h/a", "sha": 1}]}',
            "parts[0]: the keys must be of url, size, sha256, but one is",
        ),
        ('{"parts": [{"url": 3}]}', "parts[0].url must be text, but is int"),
        ('{"parts": [{"url": "file:///a"}]}', "parts[0].url must be http://HOST"),
        ('{"parts": [{"url": "http://h/"}]}', "parts[0].url must end in a plain file name"),
        (
            '{"parts": [{"url": "http://h/a", "size": 0}]}',
            "parts[0].size must be a whole number from 1 to 68719476736",
        ),
        (
            '{"parts": [{"url": "http://h/a", "size": 68719476737}]}',
            "parts[0].size must be a whole number",
        ),
        ('{"parts": [{"url": "http://h/a", "size": 1.5}]}', "parts[0].size must be a whole number"),
        (
            '{"parts": [{"url": "http://h/a", "size": true}]}',
            "parts[0].size must be a whole number",
        ),
        ('{"parts": [{"url": "http://h/a", "size": NaN}]}', "must be JSON"),
        ('{"parts": [{"url": "http://h/a", "size": "1"}]}', "parts[0].size must be a whole number"),
        (
            '{"parts": [{"url": "http://h/a", "sha256": "00"}]}',
            "parts[0].sha256 must be 64 hex digits, but is '00'",
        ),
        (
            '{"parts": [{"url": "http://h/a", "sha256": 5}]}',
            "parts[0].sha256 must be 64 hex digits",
        ),
        (
            '{"parts": [{"url": "http://h/a", "sha256": "' + "g" * 64 + '"}]}',
            "parts[0].sha256 must be 64 hex digits",
        ),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "m.json").write_text(text)
    message = refused(lambda: read_manifest(tmp_path / "m.json"))
    assert rule in message
    assert str(tmp_path / "m.json") in message


def test_a_manifest_is_a_small_file(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b" " * ((1 << 20) + 1))
    assert "at most 1,048,576 bytes" in refused(lambda: read_manifest(tmp_path / "m.json"))
    assert "none.json is missing" in refused(lambda: read_manifest(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ([], f"at least one part, {AA}"),
        (["README.md"], "at least one part"),
        ([AB, AC], f"part 1 must be '{AA}', but is '{AB}'"),
        ([AA, AC], f"part 2 must be '{AB}', but is '{AC}'"),
        ([AA, AB, "Other.partaa"], "part 2 must be 'Dataset.tar.gz.partab', but is 'Other.partaa'"),
        ([AA, AB, "Copy of " + AB], f"part 2 must be '{AB}', but is 'Copy of {AB}'"),
        (
            [AA, AB, "Dataset.tar.gz"],
            "the parts have 2 bytes in all and Dataset.tar.gz has 1; move Dataset.tar.gz",
        ),
        (
            [AA, AB, AC + ".crdownload", "Other.partab"],
            f"part 3 must be '{AC}', but is 'Other.partab'",
        ),
        (["a.zip", "b.tar.gz"], "must hold one archive, but holds 2; give the right one: "),
        (["Dataset.tar"], "but there is 'Dataset.tar'; type gzip "),
        (["a", "b", "c", "d"], "but there is 'a', 'b', 'c' and 1 more; add it"),
    ],
)
def test_parts_that_are_not_of_one_archive(tmp_path: Path, names: list[str], rule: str) -> None:
    write_parts(tmp_path / "parts", dict.fromkeys(names, b"x"))
    message = refused(lambda: find_parts(tmp_path / "parts"))
    assert rule in message
    assert str(tmp_path / "parts") in message


def test_parts_are_files(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", {AA: b"x"})
    (tmp_path / "parts" / AB).mkdir()
    assert f"{AB}: a part must be a regular file" in refused(lambda: find_parts(tmp_path / "parts"))
    assert f"is a file; give the folder that holds {AA}" in refused(
        lambda: find_parts(tmp_path / "parts" / AA)
    )
    assert "none does not exist; give another" in refused(lambda: find_parts(tmp_path / "none"))
    (tmp_path / "loop").symlink_to("loop")
    assert "loop is a link to itself" in refused(lambda: find_parts(tmp_path / "loop"))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"<!doctype html><title>Sign in</title>", "but is a web page; open it in a browser"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "but is a Git LFS pointer; run git lfs pull",
        ),
        (b"", "but is an empty file; fetch it again"),
    ],
)
@pytest.mark.parametrize("name", [AB, "Dataset.tar.gz", "hw4.zip"])
def test_a_part_that_is_something_else_is_named(
    tmp_path: Path, name: str, content: bytes, rule: str
) -> None:
    others = {AA: b"x"} if name == AB else {}
    write_parts(tmp_path / "parts", {**others, name: content})
    message = refused(lambda: find_parts(tmp_path / "parts"))
    assert f"{name}: a part must be a piece of an archive, {rule}" in message


@pytest.mark.parametrize(
    "name", ["Dataset.tar.gz", "hw4.tgz", "ml2023springhw4.zip", "HW4 (1).ZIP"]
)
def test_a_whole_archive_is_found_or_given(tmp_path: Path, name: str) -> None:
    (path,) = write_parts(tmp_path / "parts", {name: b"x"})
    assert find_parts(tmp_path / "parts") == [path]
    assert find_parts(path) == [path]


def test_parts_beside_the_merged_file(tmp_path: Path) -> None:
    write_parts(
        tmp_path / "parts", {AA: b"123", AB: b"45", "Dataset.tar.gz": b"12345", "hw4.zip": b"x"}
    )
    assert find_parts(tmp_path / "parts") == [tmp_path / "parts" / "Dataset.tar.gz"]
    (tmp_path / "parts" / "Dataset.tar.gz").write_bytes(b"123456")
    assert "has 6; move the parts away if cut" in refused(lambda: find_parts(tmp_path / "parts"))


def test_parts_that_are_in_another_folder(tmp_path: Path) -> None:
    write_parts(tmp_path / "my parts", {AA: b"x"})
    (tmp_path / "my parts" / "inner").mkdir()
    assert f"give --parts '{tmp_path / 'my parts'}'" in refused(lambda: find_parts(tmp_path))
    message = refused(lambda: find_parts(tmp_path / "my parts" / "inner"))
    assert f"give --parts '{tmp_path / 'my parts'}'" in message


def test_a_corpus_needs_no_parts(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.folder, tmp_path / "Dataset")
    (tmp_path / "Dataset" / "inner").mkdir()
    there = tmp_path / "Dataset"
    for folder in (tmp_path, there, there / "inner"):
        message = refused(partial(find_parts, folder))
        assert f"unpacked already in {there}; type python -m speaker check {there}" in message
