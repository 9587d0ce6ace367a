"""An HTTP proxy in front of a real S3 server that does to requests what networks and servers do."""

import contextlib
import http.client
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]  # boto's packages carry no type information
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]

from offload_pipeline.storage.seaweedfs import REGION, SeaweedFS
from offload_pipeline_tests.faults.chance import Chance
from offload_pipeline_tests.offload.stores import altered, truncated

Spoilers = Mapping[str, Callable[[bytes], bytes]]

ERRORS = {
    "500": (500, "InternalError"),
    "503 slow down": (503, "SlowDown"),
    "400 request timeout": (400, "RequestTimeout"),
    "400 expired token": (400, "ExpiredToken"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchKey"),
}
# A GET is altered at another place than a PUT: two alterations that undo each other would be none.
SPOILED_PUTS: Spoilers = {"truncated": truncated, "altered": altered}
SPOILED_GETS: Spoilers = {"truncated": truncated, "altered": partial(altered, fraction=4)}
LATE: Spoilers = {"late": bytes, "late truncated": truncated, "late altered": altered}
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length"}
# Longer than the time-outs that tests configure.
NO_ANSWER_SECONDS = 2.0
# A late request arrives when the client has given it up, perhaps tried again, perhaps gone on to other things.
LATE_SECONDS = (0.6, 3.0)
# S3 gives a thousand keys a page; a test's few objects are to be several pages as well.
LIST_PAGE_KEYS = 100

# What may happen to each request; "late" and "cut" requests are carried out, "no answer" and "cut request" are not.
ALL_KINDS = {
    "PUT": (
        "500", "503 slow down", "400 request timeout", "no answer", "late", "cut request", "cut",
        "nothing stored", "truncated", "altered",
    ),
    "GET": ("500", "503 slow down", "no answer", "cut", "truncated", "altered"),
    "HEAD": ("403", "500", "503 slow down", "no answer"),
    "LIST": ("500", "503 slow down", "no answer", "cut", "empty"),
    "NEXT PAGE": ("500", "503 slow down", "no answer", "cut", "empty"),
    "DELETE": ("500", "503 slow down", "no answer", "late", "cut", "nothing deleted"),
}  # fmt: skip


class FaultyProxy:
    """Forwards to an S3 server, but for the faults that a test names, or leaves to `chance`.

    `faults` has by request (PUT, GET, HEAD, LIST, NEXT PAGE, DELETE) one of ALL_KINDS, ERRORS or LATE, for
    `faults_left` requests. `injected` counts by request and kind what really happened to a request.
    """

    def __init__(self, server: SeaweedFS, chance: Chance | None = None) -> None:
        self.faults: dict[str, str] = {}
        self.faults_left = 10**9
        self.chance = chance
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.closing = threading.Event()
        self.server = server
        self.upstream = urlsplit(server.endpoint).netloc
        self.credentials = Credentials(server.access_key, server.secret_key)
        self.history: list[str] = []
        self._late: list[threading.Timer] = []
        self._held: list[_Request] = []
        self._turn = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultyProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()
            self.settle()

    def heal(self) -> None:
        """No further fault."""
        self.faults, self.chance = {}, None

    def settle(self) -> None:
        """Returns when every late request has arrived."""
        for late in self._late:
            late.join()
        for request in self._held:
            request.send()
        self._late, self._held = [], []

    def next_fault(self, request: str, path: str) -> str | None:
        with self._turn:
            self.requests[request] += 1
            fault = self.faults.get(request) if self.faults_left else None
            if fault:
                self.faults_left -= 1
            elif self.chance:
                fault = self.chance.draw(request, path)
            if fault:
                self.injected[f"{request} {fault}"] += 1
            self.history.append(f"{time.time():.3f} {request} {path} {fault}")
        return fault

    def forward_late(self, request: "_Request") -> None:
        """By chance after a while, else when the test says so (`settle`)."""
        if not self.chance:
            self._held.append(request)
            return
        late = threading.Timer(random.uniform(*LATE_SECONDS), self._forward_at_last, [request])  # noqa: S311 - a delay
        self._late = [one for one in self._late if one.is_alive()]
        self._late.append(late)
        late.start()

    def _forward_at_last(self, request: "_Request") -> None:
        self.history.append(f"{time.time():.3f} at last {request.path}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            request.send()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed, or give up waiting, are what this is for."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Request:
    """One request as it goes on to the real server."""

    def __init__(self, owner: FaultyProxy, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.owner, self.method, self.path, self.headers, self.body = owner, method, path, headers, body

    @property
    def kind(self) -> str:
        """PUT, GET, HEAD, LIST, NEXT PAGE or DELETE."""
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "delete" in query:
            return "DELETE"
        if "list-type" in query:
            return "NEXT PAGE" if "continuation-token" in query or "start-after" in query else "LIST"
        return self.method

    def in_small_pages(self) -> None:
        """Asks for a small page, and signs anew: the query is part of the signature."""
        self.path += f"&max-keys={LIST_PAGE_KEYS}"
        signed = AWSRequest(self.method, f"http://{self.headers['host']}{self.path}")
        S3SigV4Auth(self.owner.credentials, "s3", REGION).add_auth(signed)
        self.headers = {"host": self.headers["host"], **signed.headers}

    def send(self) -> tuple[int, dict[str, str], bytes]:
        """With the client's own Host header, which is part of the signature."""
        connection = http.client.HTTPConnection(self.owner.upstream, timeout=10)
        try:
            connection.putrequest(self.method, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(self.body)))
            connection.endheaders(self.body)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        """Silence."""

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = _Request(self.owner, self.command, self.path, headers, b"")
        fault = self.owner.next_fault(request.kind, self.path)
        length = int(headers.get("content-length") or 0)
        request.body = self.rfile.read(length // 2 if fault == "cut request" else length)
        if fault in ERRORS:
            status, code = ERRORS[fault]
            self._answer(status, {"content-type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
        elif fault in ("no answer", *LATE):
            if fault in LATE:
                request.body = LATE[fault](request.body)
                self.owner.forward_late(request)
            self.owner.closing.wait(NO_ANSWER_SECONDS)
            self.close_connection = True
        elif fault == "cut request":
            self._hang_up()
        elif fault in ("nothing stored", "nothing deleted", "empty"):
            self._answer(200, {"etag": '"0"'}, _empty_answer(request))
        else:
            self._forward(request, fault)

    do_PUT = do_GET = do_HEAD = do_DELETE = do_POST = _handle  # noqa: N815 - the library's names

    def _forward(self, request: _Request, fault: str | None) -> None:
        if request.kind == "PUT":
            request.body = SPOILED_PUTS.get(fault or "", bytes)(request.body)
        if request.kind in ("LIST", "NEXT PAGE"):
            request.in_small_pages()
        status, headers, answer = request.send()
        if request.kind == "GET":
            answer = SPOILED_GETS.get(fault or "", bytes)(answer)
        if fault == "cut" and len(answer) < 2:
            self._hang_up()
        else:
            self._answer(status, headers, answer, is_cut=fault == "cut")

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, is_cut: bool = False) -> None:
        # What HEAD tells of the length is of a body that does not come.
        length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(body))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response_only(status)
            for name, value in headers.items():
                if name not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("content-length", length)
            self.end_headers()
            if is_cut:
                self.close_connection = True
                body = body[: len(body) // 2]
            if self.command != "HEAD":
                self.wfile.write(body)


def _empty_answer(request: _Request) -> bytes:
    """A well-formed answer that says all went well; nothing was done."""
    if request.kind == "DELETE":
        keys = re.findall(rb"<Key>(.*?)</Key>", request.body)
        return b"<DeleteResult>%s</DeleteResult>" % b"".join(b"<Deleted><Key>%s</Key></Deleted>" % key for key in keys)
    if request.kind in ("LIST", "NEXT PAGE"):
        return b"<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
    return b""
