"""An S3 endpoint on the loopback, in a process of its own: `python s3_server.py [FAULTS [unconditional]]` prints its URL and serves until
stdin ends, then how many requests it has answered with 503 and how many there were.

Of its own, because delta-rs holds Python's lock while it waits for an answer. FAULTS is the part of requests that is
answered with 503 "SlowDown"; every other one of these has been carried out before, as when an answer is lost. An
`unconditional` one passes over If-None-Match, as some storages do.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "hospital"


@contextmanager
def s3_server(
    faults: float = 0.0, told: list[int] | None = None, *, conditional: bool = True
) -> Iterator[dict[str, str]]:
    """What the environment has to say for the endpoint to be used. It holds one empty bucket, BUCKET.

    `told` gets at the end: how many requests were answered with 503, and how many there were.
    """
    command = [sys.executable, str(Path(__file__).resolve()), str(faults), *([] if conditional else ["unconditional"])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as server:
        url = server.stdout.readline().strip()
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        server.stdin.close()
        counts = [int(word) for word in server.stdout.read().split()]
        if told is not None:
            told += counts
        server.wait(timeout=30)


class Faulty:
    """A WSGI application that fails now and then, the same way each time it is run."""

    def __init__(self, app: Any, faults: float, conditional: bool) -> None:
        self.conditional = conditional
        self.app, self.faults, self.random = app, faults, random.Random(0)
        self.requests, self.failed = 0, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.requests += 1
        if not self.conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if self.random.random() >= self.faults:
            return self.app(environ, start_response)
        self.failed += 1
        if self.failed % 2:
            for _ in self.app(environ, lambda *_: None):  # carried out, the answer lost
                pass
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app), 0.0, conditional="unconditional" not in sys.argv)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    keys = {"aws_access_key_id": "test-key", "aws_secret_access_key": "test-secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=BUCKET)
    app.faults = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    print(url, flush=True)
    sys.stdin.read()
    print(app.failed, app.requests, flush=True)
    server.shutdown()


if __name__ == "__main__":
    main()
