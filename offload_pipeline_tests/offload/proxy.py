"""An HTTP proxy in front of a real S3 server that does to requests what networks and servers do."""

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from offload_pipeline_tests.offload.stores import altered, truncated

ERRORS = {
    "500": (500, "InternalError"),
    "503 slow down": (503, "SlowDown"),
    "400 request timeout": (400, "RequestTimeout"),
    "400 expired token": (400, "ExpiredToken"),
    "403": (403, "AccessDenied"),
}
SPOILERS = {"truncated": truncated, "altered": altered}
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length"}


class FaultyProxy:
    """Forwards to `upstream`. `faults` has by HTTP method one of ERRORS, SPOILERS, no answer, cut, nothing stored."""

    def __init__(self, upstream: str) -> None:
        self.faults: dict[str, str] = {}
        self.faults_left = 10**9
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()
        self._turn = threading.Lock()
        self.upstream = urlsplit(upstream).netloc
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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

    def heal(self) -> None:
        """No further fault."""
        self.faults = {}

    def next_fault(self, method: str) -> str | None:
        with self._turn:
            self.requests[method] += 1
            fault = self.faults.get(method)
            if fault is None or self.faults_left == 0:
                return None
            self.faults_left -= 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        """Silence."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.next_fault(self.command)
        if fault in ERRORS:
            status, code = ERRORS[fault]
            self._answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
        elif fault == "no answer":
            self.owner.closing.wait(10)
            self.close_connection = True
        elif fault == "nothing stored":
            self._answer(200, {"ETag": '"0"'}, b"")
        elif fault == "cut" and self.command == "PUT":
            self.close_connection = True
        else:
            self._forward(body, fault)

    do_PUT = do_GET = do_HEAD = do_DELETE = _handle  # noqa: N815 - the library's names

    def _forward(self, body: bytes, fault: str | None) -> None:
        spoil = SPOILERS.get(fault or "", bytes)
        if self.command == "PUT":
            body = spoil(body)
        status, headers, answer = self._ask_upstream(body)
        if self.command == "GET":
            answer = spoil(answer)
        self._answer(status, headers, answer, is_cut=fault == "cut")

    def _ask_upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """With the client's own Host header, which is part of the signature."""
        connection = http.client.HTTPConnection(self.owner.upstream, timeout=10)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, is_cut: bool = False) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if is_cut:
                self.close_connection = True
                body = body[: len(body) // 2]
            if self.command != "HEAD":
                self.wfile.write(body)
