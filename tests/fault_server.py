"""A real HTTP server on the loopback that serves bytes, with ranges and validators,
and misbehaves as told.
"""

import contextlib
import hashlib
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODIFIED = "Wed, 01 Mar 2023 00:00:00 GMT"


@dataclass(frozen=True)
class Fault:
    """What goes wrong in one response."""

    before: Callable[[], object] = int  # called before anything is answered
    status: int = 0  # answer this, and send nothing but `body`
    # Added or changed; None leaves one out.
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None  # sent instead of the file's
    cut: float | None = None  # end the connection after this share of the body
    stall: float | None = None  # send no more after this share of the body
    chunked: bool = False  # send in chunks and not say how much there is
    no_range: bool = False  # ignore Range
    no_if_range: bool = False  # ignore If-Range


@dataclass
class Request:
    """What a client asked for, and how much of the body was handed to its connection."""

    path: str
    range: str | None
    if_range: str | None
    encoding: str | None
    sent: int = 0


class FaultServer:
    """Serves `files` by their names until the `with` block ends.

    Each request for a name takes one of its faults.
    """

    def __init__(self, files: Mapping[str, bytes], host: str = "127.0.0.1", port: int = 0) -> None:
        self.files = dict(files)
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}  # by name, for requests that find no other
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.ended = threading.Event()
        self.connections: list[socket.socket] = []
        self.host = host
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> "FaultServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.kill()
        if kind is None:
            assert not self.errors, self.errors

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, name: str) -> str:
        return f"http://{self.host}:{self.port}/{name}"

    def urls(self) -> list[str]:
        return [self.url(name) for name in sorted(self.files)]

    def asked(self, name: str) -> list[str | None]:
        """Return the ranges that were asked for, in order."""
        return [request.range for request in self.requests if request.path == f"/{name}"]

    def sent(self, name: str) -> int:
        return sum(request.sent for request in self.requests if request.path == f"/{name}")

    def kill(self) -> None:
        """Stop listening and break all connections, as the end of a server's process does."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # it may have ended before
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: FaultServer

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.owner.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.owner.connections.append(self.connection)

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        name = self.path.removeprefix("/")
        wanted = self.headers["Range"]
        request = Request(
            self.path, wanted, self.headers["If-Range"], self.headers["Accept-Encoding"]
        )
        owner.requests.append(request)
        fault = owner.faults[name].pop(0) if owner.faults[name] else owner.always.get(name, Fault())
        fault.before()
        status, headers, body = self._answer(owner.files.get(name), request, fault)
        if fault.status:
            status, body = fault.status, b""
        body = body if fault.body is None else fault.body
        headers["Content-Length"] = None if fault.chunked else str(len(body))
        headers.update({"Transfer-Encoding": "chunked"} if fault.chunked else {})
        headers.update(fault.headers)
        self.send_response(status)
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self._send(body, request, fault)

    def _answer(
        self, content: bytes | None, request: Request, fault: Fault
    ) -> tuple[int, dict[str, str | None], bytes]:
        """Return what a faultless server says: status, headers and body."""
        if content is None:
            return 404, {}, b"no such file"
        headers: dict[str, str | None] = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Last-Modified": MODIFIED,
        }
        validators = (None, headers["ETag"], headers["Last-Modified"])
        if (
            not request.range
            or fault.no_range
            or (request.if_range not in validators and not fault.no_if_range)
        ):
            return 200, headers, content
        start = int(request.range.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
        return (
            206,
            {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"},
            content[start:],
        )

    def _send(self, body: bytes, request: Request, fault: Fault) -> None:
        shares = [share for share in (fault.cut, fault.stall) if share is not None]
        count = int(min([*shares, 1.0]) * len(body))
        for start in range(0, count, 8192):
            piece = body[start : min(start + 8192, count)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if fault.chunked else piece)
            request.sent += len(piece)
        if fault.stall is not None:
            self.server.owner.ended.wait()
        if fault.chunked and not shares:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = bool(shares) or "Content-Length" in fault.headers
