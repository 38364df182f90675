"""A proxy on the loopback that fails now and then, hides paths of the server behind it, and counts what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3


@dataclass
class Proxy:
    url: str = ""
    asked: list[str] = field(default_factory=list[str])
    """Method and path of each request that got an answer."""
    requests: int = 0
    failed: int = 0
    every: int = 0
    """Each so-many-th request fails: with 503, with an answer that breaks off, or with none, in turn. 0: none does."""
    closed: bool = False
    hidden: tuple[str, ...] = ()
    """Beginnings of paths that are answered with 404."""

    def count(self, line: str) -> int:
        """How this request fails: 0, not at all."""
        self.requests += 1
        if self.every and self.requests % self.every == self.every - 1:
            self.failed += 1
            return 1 + self.failed % 3
        self.asked.append(line)
        return 0


@contextmanager
def flaky_proxy(target: str) -> Iterator[Proxy]:
    """A proxy before `target`."""
    proxy, lock = Proxy(), threading.Lock()
    pool = urllib3.PoolManager(maxsize=16, retries=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _pass_on(self) -> None:
            with lock:
                fault = proxy.count(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            hidden = bool(proxy.hidden) and self.path.startswith(proxy.hidden)
            headers = {name: self.headers[name] for name in ("Accept", "Authorization") if name in self.headers}
            answer = pool.request(self.command, f"{target}{self.path}", body=body, headers=headers, redirect=False)
            if fault == 3 or proxy.closed:
                self.close_connection = True
                return
            content = b"" if hidden or fault == 1 else answer.data
            self.send_response(503 if fault == 1 else 404 if hidden else answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == 2 else content)
            self.close_connection = self.close_connection or fault > 0

        do_GET = do_POST = _pass_on  # noqa: N815  # names of http.server

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield proxy
        finally:
            proxy.closed = True  # threads of open connections go on
            server.shutdown()
            thread.join()
            pool.clear()
