"""Parts over HTTP: in parallel, each resumed where it stopped, and checked.

A part that is not whole is `.NAME.partial`; `.NAME.json` says where its bytes came from, so that
only bytes of the same file are ever joined.
"""

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urljoin

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from speaker.common.errors import UserError
from speaker.common.files import (
    read_bounded,
    recognize_file,
    sha256_file,
    sync_folder,
    write_atomically,
)
from speaker.common.records import parse_record
from speaker.sources.parts import MAX_PART_BYTES, NOT_A_PART, Part, validate_url

THREADS = 4
CHUNK = 256 << 10
LOOK_UP_S = 0.5  # seconds
# Seconds after attempts that brought nothing new; after one more, give up.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
MAX_PAUSE = 30.0  # seconds, whatever a server asks for
MAX_REDIRECTS = 5
MAX_SOURCE_BYTES = 1 << 16  # of what says where a part's bytes came from
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that a later attempt may not meet
STRONG_ETAG = re.compile(r'"[!#-~]*"')
DATE = re.compile(r"[A-Za-z0-9,: +-]{1,40}")
ELSEWHERE = (
    "get the parts elsewhere, as from Kaggle's competition ml2023springhw4, and give --parts FOLDER"
)


class _TransientError(Exception):
    """An attempt failed, and a later one may not;
    `wait` is for how many seconds the server wants to be left alone.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _StoppedError(Exception):
    """Another thread failed, or the user has had enough."""


class _Progress:
    """One bar for all parts, which their threads move."""

    def __init__(self, parts: Sequence[Part], bar: Any) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._positions = {part.name: 0 for part in parts}
        self._totals = {part.name: part.size for part in parts}

    def move(self, name: str, position: int, total: int | None) -> None:
        """Note where a part stands, forward or back."""
        with self._lock:
            self._positions[name], self._totals[name] = position, total
            totals = [each for each in self._totals.values() if each is not None]
            self._bar.total = sum(totals) if len(totals) == len(self._totals) else None
            self._bar.update(sum(self._positions.values()) - self._bar.n)

    def say(self, text: str) -> None:
        """Put a few words behind the bar."""
        with self._lock:
            self._bar.set_postfix_str(text)


@dataclass(frozen=True)
class _Job:
    """What all threads share."""

    folder: Path
    timeout: float
    pauses: Sequence[float]
    progress: _Progress
    stopped: threading.Event = field(default_factory=threading.Event)
    disk: threading.Lock = field(default_factory=threading.Lock)

    def stop(self) -> None:
        """See to it that no thread changes anything on disk any more:
        it may be another process's turn from now on.
        """
        with self.disk:
            self.stopped.set()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Change something on disk in a `with` block, unless the job has been stopped."""
        with self.disk:
            if self.stopped.is_set():
                raise _StoppedError
            yield


def fetch_all(parts: Sequence[Part], folder: Path, timeout: float, pauses: Sequence[float]) -> None:
    """Fetch parts into a folder, some at a time; raise the first error and stop the others then.

    The threads are daemons: one that waits for a server does not keep Ctrl-C waiting.
    """
    todo: SimpleQueue[Part] = SimpleQueue()
    done: SimpleQueue[Exception | None] = SimpleQueue()
    for part in parts:
        todo.put(part)
    with tqdm(desc="fetching", unit="B", unit_scale=True, disable=None) as bar:
        job = _Job(folder, timeout, pauses, _Progress(parts, bar))
        try:
            for _ in range(min(THREADS, len(parts))):
                threading.Thread(target=_work, args=(job, todo, done), daemon=True).start()
            for _ in parts:
                if (error := _take(done)) is not None:
                    raise error
        finally:
            job.stop()


def _take(done: "SimpleQueue[Exception | None]") -> Exception | None:
    """Wait for the next thing in a queue, but look up now and then.

    A signal that another thread receives, or that comes just before a wait, does not end the wait.
    """
    while True:
        with contextlib.suppress(Empty):
            return done.get(timeout=LOOK_UP_S)


def _work(job: _Job, todo: "SimpleQueue[Part]", done: "SimpleQueue[Exception | None]") -> None:
    """Fetch one part after another until none is left or one fails."""
    with contextlib.suppress(Empty, _StoppedError):
        while not job.stopped.is_set():
            part = todo.get_nowait()
            try:
                _Fetch(part, job).run()
            except _StoppedError:
                raise
            except Exception as error:
                done.put(error)
                return
            done.put(None)


@dataclass(frozen=True)
class _Source:
    """Where a part's bytes came from: kept beside them, compared before others are added."""

    url: str
    etag: str | None  # strong
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """What If-Range asks for."""
        return self.etag or self.modified


class _Fetch:
    """One part on its way."""

    def __init__(self, part: Part, job: _Job) -> None:
        self._part = part
        self._job = job
        self._path = job.folder / part.name
        self._partial = job.folder / f".{part.name}.partial"
        self._sidecar = job.folder / f".{part.name}.json"

    def run(self) -> None:
        """Fetch the part, by as many attempts as bring something new, and a few that do not."""
        if self._is_here():
            return
        furthest, failures = self._position(), 0
        while True:
            try:
                self._attempt()
                break
            except _TransientError as trouble:
                failures = 0 if self._position() > furthest else failures + 1
                furthest = max(furthest, self._position())
                if failures > len(self._job.pauses):
                    raise UserError(
                        f"{self._part.url}: must be reachable, but {failures} attempts in a row "
                        f"brought nothing new ({trouble}); what has arrived is kept, and the same "
                        "command resumes from there"
                    ) from trouble
                pause = max(self._job.pauses[max(failures - 1, 0)], trouble.wait)
                self._job.progress.say(f"{self._part.name}: {trouble}")
            if self._job.stopped.wait(pause):
                raise _StoppedError
        self._finish()

    def _is_here(self) -> bool:
        """Whether an earlier call has fetched this part, from the same URL;
        remove what is something else.
        """
        if not self._path.exists():
            return False
        source, size = self._read_source(), self._path.stat().st_size
        same = (
            source is not None and source.total in (None, size) and self._part.size in (None, size)
        )
        if same and (self._part.sha256 is None or self._part.sha256 == sha256_file(self._path)):
            self._job.progress.move(self._part.name, size, size)
            return True
        with self._job.writing():
            self._path.unlink()
        self._discard()
        return False

    def _attempt(self) -> None:
        """Ask for what is missing and add what comes. Raises _TransientError if that is not all."""
        source, position = self._resumable(), self._position()
        if source and position == source.total:
            return
        headers = {"Accept-Encoding": "identity"}
        if source:
            headers["Range"] = f"bytes={position}-"
            if source.validator:
                headers["If-Range"] = source.validator
        with (
            requests.Session() as session,
            contextlib.closing(self._open(session, headers)) as response,
        ):
            if response.status_code == 200:
                self._receive(response, self._start_over(response))
            elif response.status_code == 206 and source:
                self._receive(response, self._continued(response, source, position))
            elif response.status_code != 416 or not source:
                self._refuse(response)
            elif response.headers.get("Content-Range") != f"bytes */{position}":
                self._discard()
                raise _TransientError("the server has not what is missing")

    def _open(self, session: requests.Session, headers: Mapping[str, str]) -> requests.Response:
        """Send the request, and follow redirects by hand: requests would read their bodies,
        however long.
        """
        url = self._part.url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                request = session.prepare_request(requests.Request("GET", url, headers=headers))
                settings = session.merge_environment_settings(request.url, {}, True, None, None)
                adapter = session.get_adapter(request.url)
                response = adapter.send(request, timeout=self._job.timeout, **settings)
            except ValueError as error:  # requests' own, of URLs
                raise UserError(
                    f"{self._part.url}: cannot be asked for ({_reason(error)}); fix the URL"
                ) from error
            except (requests.RequestException, HTTPError) as error:
                raise _TransientError(_reason(error)) from error
            if not response.is_redirect:
                return response
            response.close()
            url = redirect_target(url, response.headers["Location"], self._part.url)
        raise UserError(
            f"{self._part.url}: must lead to a file by at most {MAX_REDIRECTS} redirects; "
            f"{ELSEWHERE}"
        )

    def _refuse(self, response: requests.Response) -> None:
        """Raise what a response means that brings nothing: the server is not well,
        or the link is dead.
        """
        status = response.status_code
        if status in PASSING or status == 206:
            raise _TransientError(f"the server answered {status}", _retry_after(response))
        raise UserError(
            f"{self._part.url}: must be a file, but the server answered {status}; {ELSEWHERE}"
        )

    def _start_over(self, response: requests.Response) -> int | None:
        """Get ready for the whole part, and return its size if the server says it."""
        self._refuse_page(response)
        self._discard()
        total = _length(response)
        if total is not None and (self._part.size or total) != total:
            raise self._wrong(f"must have {self._part.size:,} bytes, but the server has {total:,}")
        if (total or 0) > MAX_PART_BYTES:
            raise self._wrong(
                f"must have at most {MAX_PART_BYTES:,} bytes, but the server has {total:,}"
            )
        etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        source = _Source(
            url=self._part.url,
            etag=etag if STRONG_ETAG.fullmatch(etag) else None,
            modified=modified if DATE.fullmatch(modified) else None,
            total=total,
        )
        with self._job.writing():
            write_atomically(self._sidecar, json.dumps(asdict(source)).encode())
        return total

    def _continued(self, response: requests.Response, source: _Source, position: int) -> int:
        """Return the part's size if a partial response goes on in the same part,
        just where the file ends.
        """
        self._refuse_page(response)
        found = re.fullmatch(
            r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", response.headers.get("Content-Range", "")
        )
        first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        fits = (
            first == position <= last < total
            and source.total in (None, total)
            and _length(response) in (None, last - first + 1)
            and (
                etag in (None, source.etag) if source.etag else modified in (None, source.modified)
            )
        )
        if not fits:
            self._discard()
            raise _TransientError("the server went on with something else")
        return total

    def _receive(self, response: requests.Response, total: int | None) -> None:
        """Add a response's body to the file; raise _TransientError if it ends early,
        UserError if it does not end.
        """
        total = self._part.size if total is None else total
        position = self._position()
        with self._partial.open("ab") as file:
            for chunk in _chunks(response):
                position += len(chunk)
                if position > (MAX_PART_BYTES if total is None else total):
                    raise self._wrong(
                        f"must have {total or MAX_PART_BYTES:,} bytes, but the server sends more"
                    )
                with self._job.writing():
                    file.write(chunk)
                    file.flush()
                self._job.progress.move(self._part.name, position, total)
        if total is not None and position < total:
            raise _TransientError("the connection was cut")

    def _finish(self) -> None:
        """Check the whole part and give it its name."""
        kind, _ = recognize_file(self._partial) or ("", "")
        if kind in NOT_A_PART:
            raise self._wrong(f"must be a piece of an archive, but is {kind}")
        with self._partial.open("rb+") as file:
            os.fsync(file.fileno())
        size = self._position()
        if (self._part.size or size) != size:
            raise self._wrong(f"must have {self._part.size:,} bytes, but has {size:,}")
        if self._part.sha256 and (found := sha256_file(self._partial)) != self._part.sha256:
            raise self._wrong(f"must have sha256 {self._part.sha256}, but has {found}")
        with self._job.writing():
            self._partial.replace(self._path)
        sync_folder(self._path.parent)

    def _position(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _resumable(self) -> _Source | None:
        """Return where the bytes that are here came from, if others can be added to them;
        remove them if not.
        """
        source, position = self._read_source(), self._position()
        if (
            source is not None
            and (source.validator or self._part.sha256)
            and 0 < position <= (position if source.total is None else source.total)
        ):
            return source
        self._discard()
        return None

    def _read_source(self) -> _Source | None:
        """Return what the sidecar says, if it is of the same URL."""
        try:
            data = read_bounded(self._sidecar, MAX_SOURCE_BYTES)
            source = parse_record(_Source, data, self._sidecar, "")
        except UserError:  # missing or damaged: the part is fetched from its beginning
            return None
        return source if source.url == self._part.url else None

    def _discard(self) -> None:
        """Remove the bytes before what says where they came from."""
        with self._job.writing():
            self._partial.unlink(missing_ok=True)
            self._sidecar.unlink(missing_ok=True)
        self._job.progress.move(self._part.name, 0, self._part.size)

    def _wrong(self, rule: str) -> UserError:
        """Remove the part, and return the error that says why."""
        self._discard()
        return UserError(
            f"{self._part.url}: {rule}; what came of this part is removed: {ELSEWHERE}"
        )

    def _refuse_page(self, response: requests.Response) -> None:
        """Raise UserError for a web page that comes instead of the part: a login, a notice,
        a proxy's excuse.
        """
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise UserError(
                f"{self._part.url}: must be a file, but the server sends a web page; {ELSEWHERE}"
            )
        if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise UserError(
                f"{self._part.url}: must be sent as it is, but comes as {coding[:40]!r}; "
                f"{ELSEWHERE}"
            )


def redirect_target(url: str, location: str, asked: str) -> str:
    """Return the URL that a redirect leads to: another host is fine,
    but nothing less safe than before.

    `asked` is the URL of the part, for the error.
    """
    try:
        target = urljoin(url, location)
    except ValueError:  # not an address; validate_url says so
        target = location
    validate_url(target, f"{asked}: what it redirects to")
    if url.startswith("https:") and not target.startswith("https:"):
        raise UserError(f"{asked}: https must not redirect to http, but does; {ELSEWHERE}")
    return target


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it comes and as it is; read1 does not wait for a whole chunk,
    so that a stall loses nothing.
    """
    while True:
        try:
            chunk: bytes = response.raw.read1(CHUNK, decode_content=False)
        except (HTTPError, OSError) as error:
            raise _TransientError(_reason(error)) from error
        if not chunk:
            return
        yield chunk


def _length(response: requests.Response) -> int | None:
    """Return the body's length, if the server says it."""
    text = response.headers.get("Content-Length", "")
    return (
        int(text)
        if re.fullmatch(r"\d{1,15}", text) and "Transfer-Encoding" not in response.headers
        else None
    )


def _retry_after(response: requests.Response) -> float:
    """Return for how many seconds the server wants to be left alone, within reason."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), MAX_PAUSE) if re.fullmatch(r"\d{1,9}", text) else 0.0


def _reason(error: BaseException) -> str:
    """Return the innermost cause in words: requests wraps a refused connection three times."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
