import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from speaker.sources.homework import download, unpack_parts
from speaker.sources.http import redirect_target
from speaker.sources.parts import Part, find_parts, parts_of_urls
from tests.fault_server import MODIFIED, Fault, FaultServer
from tests.helpers import AA, AB, AC, AD, ROOT, environment, refused, write_corpus
from tests.sources.test_archive import pack_folder, split, tree, write_parts
from tests.warm import run_warm

QUICK = (0.01,) * 5
BARE = {"ETag": None, "Last-Modified": None}
DOWNLOAD = """
import sys
from pathlib import Path
from speaker.common.cli import run_cli
from speaker.sources.homework import download
from speaker.sources.parts import parts_of_urls
run_cli(lambda: print(download(parts_of_urls(sys.argv[3:]), Path(sys.argv[1]), timeout=float(sys.argv[2]))))
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "Dataset"
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def files(dataset: Path) -> dict[str, bytes]:
    return split(pack_folder(dataset), 4)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[FaultServer]:
    with FaultServer(files) as running:
        yield running


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder / "corpus"


def parts_of(server: FaultServer) -> tuple[Part, ...]:
    return parts_of_urls(server.urls())


def fetch(server: FaultServer, out: Path, timeout: float = 30.0) -> bool:
    return download(parts_of(server), out, timeout, QUICK)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def in_place(out: Path) -> bool:
    """Whether the corpus is there, and nothing else but its lock."""
    return {path.name for path in out.parent.iterdir()} - {f".{out.name}.lock"} == {out.name}


def kept(out: Path) -> dict[str, int]:
    """Return the sizes of the parts, whole or not, that are kept for a later call,
    and see that nothing else is.
    """
    assert {path.name for path in out.parent.iterdir()} <= {
        f".{out.name}.lock",
        f".{out.name}.parts",
    }
    sizes = {}
    for path in out.with_name(f".{out.name}.parts").glob("*"):
        # The threads of other parts may still be at work.
        with contextlib.suppress(FileNotFoundError):
            sizes[path.name] = path.stat().st_size
    return {name: size for name, size in sizes.items() if not name.endswith(".json")}


def once_kept(out: Path, *names: str) -> Callable[[], None]:
    """Return what waits until these parts are whole."""
    return lambda: until(lambda: set(names) <= set(kept(out)))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does; give up after a time that only a failure takes."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen")


@contextlib.contextmanager
def started(
    out: Path, urls: Sequence[str], timeout: float = 3600.0
) -> Iterator["subprocess.Popen[str]"]:
    """Run a download in a process of its own, which the end of the `with` block kills."""
    command = [sys.executable, "-c", DOWNLOAD, str(out), str(timeout), *urls]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_fetches_and_unpacks(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    assert fetch(server, out)
    assert tree(out) == tree(dataset)
    assert in_place(out)
    assert sorted(request.path for request in server.requests) == [f"/{name}" for name in files]
    assert {(request.range, request.encoding) for request in server.requests} == {
        (None, "identity")
    }


def test_a_corpus_that_is_there_is_left_alone(server: FaultServer, out: Path) -> None:
    fetch(server, out)
    server.requests.clear()
    (out / "note").write_text("mine")
    assert not fetch(server, out)
    assert not unpack_parts([], out)
    assert not server.requests
    assert (out / "note").read_text() == "mine"


@pytest.mark.parametrize(
    "make", [Path.mkdir, Path.touch, lambda path: (path / "mapping.json").mkdir(parents=True)]
)
def test_something_else_that_is_there_is_left_alone(
    server: FaultServer, out: Path, make: Callable[[Path], None]
) -> None:
    make(out)
    before = sorted(out.rglob("*"))
    assert f"{out} must not be there yet, or be a corpus" in refused(lambda: fetch(server, out))
    assert "must not be there yet" in refused(lambda: unpack_parts([], out))
    assert sorted(out.rglob("*")) == before
    assert in_place(out)
    assert not server.requests


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("tenths", range(11))
def test_a_cut_connection_is_gone_on_from(
    server: FaultServer,
    out: Path,
    dataset: Path,
    files: dict[str, bytes],
    tenths: int,
    chunked: bool,
) -> None:
    server.faults[AB] = [Fault(cut=tenths / 10, chunked=chunked)]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    position = int(tenths / 10 * len(files[AB]))
    complete = position == len(files[AB]) and not chunked
    again = [] if complete else [f"bytes={position}-" if position else None]
    assert server.asked(AB) == [None, *again]
    assert server.sent(AB) == len(files[AB])
    assert all(
        request.if_range == f'"{digest(files[AB])}"' for request in server.requests if request.range
    )


def test_cut_again_and_again_by_each_server_in_turn(
    server: FaultServer, out: Path, dataset: Path
) -> None:
    for name in server.files:
        server.faults[name] = [Fault(cut=0.3, chunked=i % 2 == 0) for i in range(12)]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert all(len(server.asked(name)) == 13 for name in server.files)


def test_a_server_without_ranges_starts_over(server: FaultServer, out: Path, dataset: Path) -> None:
    server.faults[AB] = [Fault(cut=0.5), Fault(no_range=True)]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert [bool(wanted) for wanted in server.asked(AB)] == [False, True]


def test_a_server_without_ranges_that_always_cuts_is_given_up(
    server: FaultServer, out: Path
) -> None:
    server.always[AB] = Fault(cut=0.5, no_range=True)
    assert "6 attempts in a row brought nothing new (IncompleteRead" in refused(
        lambda: fetch(server, out)
    )
    assert len(server.asked(AB)) == 7


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("longer", [False, True])
def test_a_part_that_changed_meanwhile_starts_over(
    server: FaultServer, out: Path, tmp_path: Path, longer: bool, ignored: bool
) -> None:
    server.faults[AB] = [Fault(cut=0.5), *[Fault(once_kept(out, AA, AC, AD), 503)] * 6]
    assert "what has arrived is kept, and the same command resumes" in refused(
        lambda: fetch(server, out)
    )
    write_corpus(tmp_path / "new" / "Dataset", per_speaker=16 if longer else 15, seed=1)
    server.files = split(pack_folder(tmp_path / "new" / "Dataset"), 4)
    server.always[AB] = Fault(no_if_range=ignored)
    for name in (AA, AC, AD):  # these were whole
        (out.parent / f".{out.name}.parts" / name).unlink()
    fetch(server, out)
    assert tree(out) == tree(tmp_path / "new" / "Dataset")
    assert [bool(wanted) for wanted in server.asked(AB)[7:]] == (
        [True, False] if ignored else [True]
    )


@pytest.mark.parametrize(
    "page",
    [
        Fault(body=b"sign in", headers={"Content-Type": "text/html; charset=utf-8"}),
        Fault(body=b"\n <!DOCTYPE html><title>Sign in</title>"),
        Fault(body=b"<HTML><body>over quota"),
        Fault(body=b"<html><body>over quota", chunked=True, headers=BARE),
    ],
)
def test_a_web_page_is_no_part(server: FaultServer, out: Path, page: Fault) -> None:
    server.always[AB] = page
    message = refused(lambda: fetch(server, out))
    assert "web page" in message
    assert server.url(AB) in message
    assert "--parts FOLDER" in message
    assert not {name for name in kept(out) if AB in name}


def test_a_web_page_costs_nothing_that_had_arrived(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    server.faults[AB] = [
        Fault(cut=0.5),
        Fault(body=b"pay", headers={"Content-Type": "text/html"}, no_range=True),
    ]
    assert "web page" in refused(lambda: fetch(server, out))
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert server.asked(AB)[2] == f"bytes={len(files[AB]) // 2}-"


def test_a_server_that_is_not_well_recovers(server: FaultServer, out: Path, dataset: Path) -> None:
    server.faults[AB] = [Fault(status=status) for status in (500, 502, 503, 504)]
    server.faults[AC] = [Fault(status=429, headers={"Retry-After": "1"}), Fault(status=408)]
    server.faults[AD] = [Fault(status=503, headers={"Retry-After": "soon"})]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert [len(server.asked(name)) for name in (AA, AB, AC, AD)] == [1, 5, 3, 2]


def test_a_server_that_stays_unwell_is_given_up_and_gone_on_from(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    server.always[AB] = Fault(once_kept(out, AA, AC, AD), 500)
    message = refused(lambda: fetch(server, out))
    assert (
        f"{server.url(AB)}: must be reachable, but 6 attempts in a row brought nothing new"
        in message
    )
    assert "the server answered 500" in message
    assert "the same command resumes" in message
    assert len(server.asked(AB)) == 6
    assert kept(out) == {name: len(files[name]) for name in (AA, AC, AD)}
    server.always.clear()
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert [len(server.asked(name)) for name in (AA, AB, AC, AD)] == [1, 7, 1, 1]


def test_only_failures_in_a_row_are_counted(server: FaultServer, out: Path, dataset: Path) -> None:
    server.faults[AB] = [
        *[Fault(status=500)] * 5,
        Fault(cut=0.2),
        *[Fault(status=500)] * 5,
        Fault(cut=0.2),
    ]
    server.faults[AB] += [Fault(status=500)] * 5
    fetch(server, out)
    assert tree(out) == tree(dataset)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_stall_is_gone_on_from(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes], share: float
) -> None:
    server.faults[AB] = [Fault(stall=share)]
    fetch(server, out, timeout=0.5)
    assert tree(out) == tree(dataset)
    position = int(share * len(files[AB]))
    assert server.asked(AB) == [None, f"bytes={position}-" if position else None]


def test_a_server_that_is_not_there_is_given_up(server: FaultServer, out: Path) -> None:
    server.kill()
    message = refused(lambda: fetch(server, out))
    assert "(ConnectionRefusedError: " in message
    assert "6 attempts in a row brought nothing new" in message
    assert kept(out) == {}


def test_redirects_to_another_host_are_followed(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    with FaultServer({}) as front:
        for name in files:
            target = (
                f"http://localhost:{server.port}/{name}?token=1#x"
                if name == AA
                else server.url(name)
            )
            front.always[name] = Fault(status=302, headers={"Location": target})
        server.files[f"{AA}?token=1"] = server.files[AA]
        server.faults[AB] = [Fault(cut=0.5)]
        download(parts_of_urls([front.url(name) for name in files]), out, pauses=QUICK)
        assert front.asked(AB) == [None, f"bytes={len(files[AB]) // 2}-"]
    assert tree(out) == tree(dataset)
    assert server.asked(AB) == [None, f"bytes={len(files[AB]) // 2}-"]


def test_a_relative_redirect_is_followed(server: FaultServer, out: Path, dataset: Path) -> None:
    server.always[AB] = Fault(status=307, headers={"Location": "/moved"})
    server.files["moved"] = server.files[AB]
    download(parts_of_urls([server.url(name) for name in (AA, AB, AC, AD)]), out)
    assert tree(out) == tree(dataset)


def test_a_redirects_own_body_is_not_read(server: FaultServer, out: Path, dataset: Path) -> None:
    server.always[AB] = Fault(
        status=302, headers={"Location": "/moved"}, body=bytes(100_000), stall=0.5
    )
    server.files["moved"] = server.files[AB]
    download(parts_of_urls([server.url(name) for name in (AA, AB, AC, AD)]), out)
    assert tree(out) == tree(dataset)


@pytest.mark.parametrize(
    ("location", "rule"),
    [
        ("file:///etc/passwd", "http://HOST/... or https://HOST/..., but is 'file:///etc/passwd'"),
        ("ftp://localhost/x", "but is 'ftp://localhost/x'"),
        ("https:///x", "http://HOST"),
        ("http://localhost:99999/x", "http://HOST"),
        ("http://me:secret@localhost/x", "no user name or password"),
        ("ftp://me:secret@localhost/x", "'ftp://***@localhost/x'"),
        (AB, "at most 5 redirects"),
    ],
)
def test_redirects_to_elsewhere_are_refused(
    server: FaultServer, out: Path, location: str, rule: str
) -> None:
    server.always[AB] = Fault(status=302, headers={"Location": location})
    message = refused(lambda: fetch(server, out))
    assert rule in message
    assert server.url(AB) in message
    assert "secret" not in message
    assert len(server.asked(AB)) == (6 if location == AB else 1)


def test_a_redirect_to_no_address_is_one_clear_line() -> None:
    message = refused(lambda: redirect_target("http://host/x", "http://h[x", "http://host/x"))
    assert "what it redirects to must be http://HOST/" in message


def test_a_part_in_a_coding_is_refused(server: FaultServer, out: Path) -> None:
    server.always[AB] = Fault(headers={"Content-Encoding": "gzip"})
    assert "must be sent as it is, but comes as 'gzip'" in refused(lambda: fetch(server, out))


def test_https_does_not_redirect_to_http() -> None:
    asked = "https://host/x"
    assert redirect_target(asked, "https://other/y", asked) == "https://other/y"
    assert "must not redirect to http" in refused(
        lambda: redirect_target(asked, "http://b/y", asked)
    )


@pytest.mark.parametrize("status", [401, 403, 404, 410, 301, 204, 505])
def test_a_dead_link_is_not_tried_again(server: FaultServer, out: Path, status: int) -> None:
    server.always[AB] = Fault(status=status)
    message = refused(lambda: fetch(server, out))
    assert f"{server.url(AB)}: must be a file, but the server answered {status}" in message
    assert "Kaggle's competition ml2023springhw4" in message
    assert "--parts FOLDER" in message
    assert len(server.asked(AB)) == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"Content-Range": "bytes 0-9/{total}"},
        {"Content-Range": "bytes {before}-{end}/{total}"},
        {"Content-Range": "bytes {next}-{last}/{total}"},
        {"Content-Range": "bytes {half}-{last}/9999999"},
        {"Content-Range": "bytes {half}-{total}/{total}", "Content-Length": None},
        {"Content-Range": "bytes {half}-{last}/*"},
        {"Content-Range": "lines 1-2/3"},
        {"Content-Range": None},
        {"ETag": '"another"'},
        {"Content-Length": "9999999"},
    ],
)
def test_a_range_that_lies_starts_over(
    server: FaultServer,
    out: Path,
    dataset: Path,
    files: dict[str, bytes],
    lie: dict[str, str | None],
) -> None:
    total = len(files[AB])
    half = total // 2
    numbers = {
        "before": half - 1,
        "half": half,
        "next": half + 1,
        "end": total - 2,
        "last": total - 1,
        "total": total,
    }
    headers = {key: value and value.format(**numbers) for key, value in lie.items()}
    server.faults[AB] = [Fault(cut=0.5), Fault(headers=headers)]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert server.asked(AB) == [None, f"bytes={total // 2}-", None]


def test_a_range_that_was_not_asked_for_is_not_taken(
    server: FaultServer, out: Path, dataset: Path
) -> None:
    server.faults[AB] = [
        Fault(status=206, headers={"Content-Range": "bytes 0-9/10"}, body=b"0123456789")
    ]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert server.asked(AB) == [None, None]


def test_a_range_that_stops_short_is_gone_on_from(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    total = len(files[AB])
    half, end = total // 2, total // 2 + 100
    short = {"Content-Range": f"bytes {half}-{end - 1}/{total}"}
    server.faults[AB] = [Fault(cut=0.5), Fault(headers=short, body=files[AB][half:end])]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert server.asked(AB) == [None, f"bytes={half}-", f"bytes={end}-"]


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Range": "bytes */5"}, {"Content-Range": "bytes */*"}]
)
def test_a_range_that_is_refused_starts_over(
    server: FaultServer,
    out: Path,
    dataset: Path,
    files: dict[str, bytes],
    headers: dict[str, str | None],
) -> None:
    server.faults[AB] = [Fault(cut=0.5), Fault(status=416, headers=headers)]
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert server.asked(AB) == [None, f"bytes={len(files[AB]) // 2}-", None]


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
@pytest.mark.parametrize("weak", [False, True])
def test_the_strongest_validator_is_sent(
    server: FaultServer, out: Path, validator: str, weak: bool
) -> None:
    etag = 'W/"x"' if weak else f'"{digest(server.files[AB])}"'
    headers = {**BARE, "ETag": etag} if validator == "ETag" else {"ETag": 'W/"x"' if weak else None}
    server.faults[AB] = [Fault(cut=0.5, headers=headers)]
    fetch(server, out)
    expected = MODIFIED if validator == "Last-Modified" else None if weak else etag
    assert [request.if_range for request in server.requests if request.path == f"/{AB}"] == [
        None,
        expected,
    ]
    assert [bool(wanted) for wanted in server.asked(AB)] == [False, expected is not None]


@pytest.mark.parametrize("validator", [{}, {"ETag": '"a\u00e9"', "Last-Modified": "\u00e9"}])
def test_without_a_validator_only_a_checksum_allows_to_go_on(
    server: FaultServer,
    out: Path,
    dataset: Path,
    files: dict[str, bytes],
    validator: dict[str, str | None],
) -> None:
    for name in (AB, AC):
        server.faults[name] = [Fault(cut=0.5, headers={**BARE, **validator}), Fault(headers=BARE)]
    checked = [
        Part(server.url(name), name, sha256=digest(files[name]) if name == AC else None)
        for name in files
    ]
    download(checked, out, pauses=QUICK)
    assert tree(out) == tree(dataset)
    assert server.asked(AB) == [None, None]
    assert server.asked(AC) == [None, f"bytes={len(files[AC]) // 2}-"]
    assert {request.if_range for request in server.requests} == {None}


@pytest.mark.parametrize(("chunked", "length"), [(False, None), (True, None), (True, "5")])
def test_no_content_length(
    server: FaultServer, out: Path, dataset: Path, chunked: bool, length: str | None
) -> None:
    for name in server.files:
        server.always[name] = Fault(chunked=chunked, headers={"Content-Length": length})
    fetch(server, out)
    assert tree(out) == tree(dataset)


def sized(server: FaultServer, more: int) -> list[Part]:
    """Return the parts with their sizes, the second one's wrong."""
    return [
        Part(server.url(name), name, len(data) + more * (name == AB))
        for name, data in server.files.items()
    ]


@pytest.mark.parametrize("more", [-1, 1])
def test_a_wrong_size_is_noticed_before_a_byte_comes(
    server: FaultServer, out: Path, more: int
) -> None:
    total = len(server.files[AB])
    message = refused(lambda: download(sized(server, more), out, pauses=QUICK))
    assert (
        f"{server.url(AB)}: must have {total + more:,} bytes, but the server has {total:,}"
        in message
    )
    assert not {name for name in kept(out) if AB in name}
    assert len(server.asked(AB)) == 1


@pytest.mark.parametrize("more", [-1, 1])
def test_a_size_that_is_told_late_is_compared_too(
    server: FaultServer, out: Path, more: int
) -> None:
    server.faults[AB] = [Fault(cut=0.5), *[Fault(status=500)] * 6]
    refused(lambda: fetch(server, out))
    total = len(server.files[AB])
    message = refused(lambda: download(sized(server, more), out, pauses=QUICK))
    assert f"must have {total + more:,} bytes, but has {total:,}" in message
    assert not {name for name in kept(out) if AB in name}


def test_a_body_longer_than_the_manifest_says_is_stopped(server: FaultServer, out: Path) -> None:
    server.always[AB] = Fault(chunked=True)
    assert "but the server sends more" in refused(
        lambda: download(sized(server, -1), out, pauses=QUICK)
    )
    assert not {name for name in kept(out) if AB in name}


def test_a_body_shorter_than_the_manifest_says_is_not_whole(server: FaultServer, out: Path) -> None:
    server.always[AB] = Fault(chunked=True, no_range=True)
    message = refused(lambda: download(sized(server, 1), out, pauses=QUICK))
    assert "6 attempts in a row brought nothing new (the connection was cut)" in message


def test_what_follows_the_promised_length_is_not_taken(
    server: FaultServer, out: Path, dataset: Path
) -> None:
    longer = server.files[AB] + b"HTTP/1.1 200 OK\r\n\r\n" * 100
    server.always[AB] = Fault(body=longer, headers={"Content-Length": str(len(server.files[AB]))})
    fetch(server, out)
    assert tree(out) == tree(dataset)


def test_a_huge_length_is_refused(server: FaultServer, out: Path) -> None:
    server.always[AB] = Fault(headers={"Content-Length": "99999999999999"})
    assert "must have at most 68,719,476,736 bytes" in refused(lambda: fetch(server, out))


def test_checksums_are_compared(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    right = [Part(server.url(name), name, len(data), digest(data)) for name, data in files.items()]
    wrong = [*right[:1], Part(server.url(AB), AB, None, digest(b"")), *right[2:]]
    message = refused(lambda: download(wrong, out, pauses=QUICK))
    assert (
        f"{server.url(AB)}: must have sha256 {digest(b'')}, but has {digest(files[AB])}" in message
    )
    assert not {name for name in kept(out) if AB in name}
    download(right, out, pauses=QUICK)
    assert tree(out) == tree(dataset)


def test_whole_parts_are_compared_with_what_is_wanted_now(out: Path, dataset: Path) -> None:
    files = split(pack_folder(dataset), 6)
    shorter, sized, flipped, moved, same, late = files
    with FaultServer(files) as server:
        server.faults[sized] = [Fault(chunked=True)]
        server.always[late] = Fault(once_kept(out, shorter, sized, flipped, moved, same), 500)
        refused(lambda: fetch(server, out))
        folder = out.with_name(f".{out.name}.parts")
        (folder / shorter).write_bytes(files[shorter][:-1])
        (folder / sized).write_bytes(files[sized][:-1])
        (folder / flipped).write_bytes(files[flipped][:-1] + b"?")
        server.always.clear()
        server.files[f"new/{moved}"] = files[moved]
        wanted = {name: Part(server.url(name), name) for name in files}
        wanted[sized] = replace(wanted[sized], size=len(files[sized]))
        wanted[flipped] = replace(wanted[flipped], sha256=digest(files[flipped]))
        wanted[moved] = replace(wanted[moved], url=server.url(f"new/{moved}"))
        download(list(wanted.values()), out, pauses=QUICK)
        counts = [
            len(server.asked(name))
            for name in (shorter, sized, flipped, moved, f"new/{moved}", same)
        ]
    assert tree(out) == tree(dataset)
    assert counts == [2, 2, 2, 1, 1, 1]


def test_a_part_whose_last_byte_came_is_not_asked_for_again(
    server: FaultServer, out: Path, dataset: Path
) -> None:
    server.always[AB] = Fault(once_kept(out, AA, AC, AD), 500)
    refused(lambda: fetch(server, out))
    folder = out.with_name(f".{out.name}.parts")
    # As a process leaves it that is killed just then.
    (folder / AA).rename(folder / f".{AA}.partial")
    server.always.clear()
    fetch(server, out)
    assert tree(out) == tree(dataset)
    assert server.asked(AA) == [None]


def test_an_archive_that_cannot_be_unpacked_says_how_to_go_on(
    server: FaultServer, out: Path
) -> None:
    server.files[AC] = server.files[AB]
    message = refused(lambda: fetch(server, out))
    assert f"{AC}: the archive cannot be read on here" in message
    assert f"delete {out.with_name(f'.{out.name}.parts')}" in message
    assert set(kept(out)) == {AA, AB, AC, AD}


@pytest.mark.timeout(60)
def test_an_error_in_one_part_does_not_wait_for_the_others(server: FaultServer, out: Path) -> None:
    server.always[AA] = Fault(stall=0.5)
    server.always[AB] = Fault(status=404)
    assert "404" in refused(lambda: fetch(server, out, timeout=3600))


def test_nothing_is_written_after_an_error(
    server: FaultServer, out: Path, files: dict[str, bytes]
) -> None:
    gate = threading.Event()
    server.always[AA] = Fault(gate.wait)
    server.always[AB] = Fault(once_kept(out, AC, AD), 404)
    assert "404" in refused(lambda: fetch(server, out))
    gate.set()
    until(lambda: not any("(_work)" in thread.name for thread in threading.enumerate()))
    assert kept(out) == {name: len(files[name]) for name in (AC, AD)}


def test_many_parts(dataset: Path, out: Path) -> None:
    with FaultServer(split(pack_folder(dataset), 8)) as server:
        fetch(server, out)
    assert tree(out) == tree(dataset)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_killed_process_is_gone_on_from(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes], share: float
) -> None:
    for name in (AB, AD):
        server.faults[name] = [Fault(stall=share)]
    arrived = {AA: len(files[AA]), AC: len(files[AC])}
    arrived |= {f".{name}.partial": int(share * len(files[name])) for name in (AB, AD)}
    with started(out, server.urls()) as process:
        until(lambda: kept(out) == arrived)
        process.kill()
        process.communicate(timeout=60)
    assert fetch(server, out)
    assert tree(out) == tree(dataset)
    assert in_place(out)
    assert [len(server.asked(name)) for name in (AA, AC)] == [1, 1]
    assert server.asked(AB) == [None, f"bytes={arrived[f'.{AB}.partial']}-"]
    assert server.asked(AD) == [None, f"bytes={arrived[f'.{AD}.partial']}-"]
    assert all(server.sent(name) == len(files[name]) for name in files)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_a_stalled_server(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes], signum: signal.Signals
) -> None:
    server.faults[AB] = [Fault(stall=0.5)]
    with started(out, server.urls()) as process:
        until(lambda: kept(out).get(f".{AB}.partial") == len(files[AB]) // 2)
        process.send_signal(signum)
        assert process.communicate(timeout=60) == ("", f"Stopped by {signum.name}.\n")
        assert process.returncode == 128 + signum
    fetch(server, out)
    assert tree(out) == tree(dataset)


def test_a_server_that_dies_and_comes_back(
    out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    with FaultServer(files) as first:
        for name in files:
            first.faults[name] = [Fault(stall=0.6)]
        with started(out, first.urls()) as process:
            until(
                lambda: (
                    sum(kept(out).values()) == sum(int(0.6 * len(data)) for data in files.values())
                )
            )
            first.kill()
            with FaultServer(files, port=first.port) as second:
                output = process.communicate(timeout=60)
    assert output == ("True\n", "")
    assert tree(out) == tree(dataset)
    assert all(
        second.asked(name) == [f"bytes={int(0.6 * len(data))}-"] for name, data in files.items()
    )


def test_two_processes_at_once(
    server: FaultServer, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    with started(out, server.urls()) as one, started(out, server.urls()) as other:
        said = [one.communicate(timeout=60), other.communicate(timeout=60)]
    assert sorted(said) == [("False\n", ""), ("True\n", "")]
    assert tree(out) == tree(dataset)
    assert sorted(request.path for request in server.requests) == [f"/{name}" for name in files]


def test_unpacks_a_folder_of_parts(
    tmp_path: Path, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    others = {
        "SHA256SUMS": b"x",
        "README.md": b"",
        "._" + AA: b"mac",
        f"{AB}.crdownload": b"half",
        "Dataset.zip": b"",
    }
    paths = write_parts(tmp_path / "parts", {**files, **others})
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert [path.name for path in find_parts(tmp_path / "parts")] == [AA, AB, AC, AD]
    assert unpack_parts(find_parts(tmp_path / "parts"), out)
    assert tree(out) == tree(dataset)
    assert tree(tmp_path / "parts") == {**files, **others}
    assert [path.stat().st_mtime_ns for path in paths] == stamps
    assert in_place(out)


def test_unpacks_a_single_file(
    tmp_path: Path, out: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    write_parts(tmp_path / "parts", {"Dataset.tar.gz": b"".join(files.values())})
    unpack_parts(find_parts(tmp_path / "parts"), out)
    assert tree(out) == tree(dataset)


@pytest.mark.slow
def test_unpacks_what_kaggle_gives(tmp_path: Path, dataset: Path) -> None:
    archive = shutil.make_archive(
        str(tmp_path / "parts" / "ml2023springhw4"), "zip", dataset.parent, "Dataset"
    )
    done = run_warm(tmp_path, "speaker", "download", "--parts", "parts", "--out", "from-folder")
    assert done.returncode == 0, done.stderr
    done = run_warm(tmp_path, "speaker", "download", "--parts", archive, "--out", "from-file")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "from-folder") == tree(tmp_path / "from-file") == tree(dataset)
    (tmp_path / "parts" / "ml2023springhw4.zip").write_bytes(b"PK\3\4")
    done = run_warm(tmp_path, "speaker", "download", "--parts", "parts", "--out", "broken")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the zip cannot be read" in done.stderr


def test_an_out_that_is_a_link_to_itself_is_one_line(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    paths = write_parts(tmp_path / "parts", files)
    (tmp_path / "loop").symlink_to("loop")
    assert "is a link to itself" in refused(lambda: unpack_parts(paths, tmp_path / "loop"))


def test_a_git_lfs_pointer_is_not_a_part(server: FaultServer, out: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    server.always[AB] = Fault(body=pointer)
    message = refused(lambda: fetch(server, out))
    assert "must be a piece of an archive, but is a Git LFS pointer" in message
    assert "--parts FOLDER" in message


def test_another_archives_part_is_named(tmp_path: Path, out: Path, files: dict[str, bytes]) -> None:
    write_corpus(tmp_path / "other" / "Dataset", seed=5)
    other = split(pack_folder(tmp_path / "other" / "Dataset"), 4)
    write_parts(tmp_path / "parts", {**files, AC: other[AC]})
    message = refused(lambda: unpack_parts(find_parts(tmp_path / "parts"), out))
    assert f"parts/{AC}: the archive cannot be read on here" in message
    assert kept(out) == {}


def test_a_missing_last_part_shows_when_the_archive_ends(
    tmp_path: Path, out: Path, files: dict[str, bytes]
) -> None:
    write_parts(tmp_path / "parts", {name: files[name] for name in (AA, AB, AC)})
    message = refused(lambda: unpack_parts(find_parts(tmp_path / "parts"), out))
    assert f"parts/{AC}: the archive cannot be read on here" in message
    assert "missing" in message
    assert kept(out) == {}


@pytest.mark.slow
def test_the_verb(
    server: FaultServer, tmp_path: Path, dataset: Path, files: dict[str, bytes]
) -> None:
    urls = [word for url in server.urls() for word in ("--url", url)]
    done = run_warm(tmp_path, "speaker", "download", *urls, "--out", "from urls")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == "The corpus is in from urls.\nNext:\n  python -m speaker check 'from urls'\n"
    )
    again = run_warm(tmp_path, "speaker", "download", *urls, "--out", "from urls")
    assert again.stdout.startswith("Nothing to do: the corpus is already in from urls.")
    (tmp_path / "m.json").write_text(json.dumps({"parts": [{"url": url} for url in server.urls()]}))
    assert (
        run_warm(
            tmp_path, "speaker", "download", "--manifest", "m.json", "--out", "from-manifest"
        ).returncode
        == 0
    )
    write_parts(tmp_path / "parts", files)
    assert run_warm(tmp_path, "speaker", "download", "--parts", "parts").returncode == 0
    for name in ("from urls", "from-manifest", "Dataset"):
        assert tree(tmp_path / name) == tree(dataset)
    server.always[AB] = Fault(status=404)
    dead = run_warm(tmp_path, "speaker", "download", *urls, "--out", "dead")
    assert (dead.returncode, dead.stderr.count("\n")) == (2, 1)
    assert "ml2023springhw4" in dead.stderr
    assert "--parts FOLDER" in dead.stderr
    assert not (tmp_path / "dead").exists()
