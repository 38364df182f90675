"""Remote storage through pyarrow.fs, with patience: what fails for the moment is asked for again.

pyarrow's S3 repeats most requests by itself, but not a read whose error text is longer than the bytes asked for, nor an
upload whose last answer was lost. Ray Train writes checkpoints through the same file system.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from medray.storage.content import Content, as_file

T = TypeVar("T")

ATTEMPTS = 6
PAUSE = 0.1
"""Seconds before the second attempt; twice as long before each one after it."""

_PASSING = (
    "SLOW_DOWN",
    "INTERNAL_FAILURE",
    "SERVICE_UNAVAILABLE",
    "THROTTLING",
    "REQUEST_TIMEOUT",
    "NETWORK_CONNECTION",
)
_PASSING_HTTP = ("HTTP status 500", "HTTP status 502", "HTTP status 503", "HTTP status 504", "HTTP status 429")


def is_passing(error: OSError) -> bool:
    """Whether the storage may give another answer soon: it was busy, or the connection broke."""
    text = str(error)
    return any(code in text for code in _PASSING) or any(status.lower() in text.lower() for status in _PASSING_HTTP)


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` gives, asked up to ATTEMPTS times while the storage is busy. Raises its last OSError."""
    for turn in range(ATTEMPTS):
        try:
            return ask()
        except OSError as error:
            if turn + 1 == ATTEMPTS or not is_passing(error):
                raise
        time.sleep(PAUSE * 2**turn)
    raise AssertionError("unreachable")


def file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a remote URI, and the path in it. Credentials and endpoint come from the environment."""
    parts = urlsplit(uri)
    if parts.scheme == "s3" and not parts.query:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        # the key has all that the client takes from the environment when it is made
        keys = tuple(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN"))
        return _s3(parts.netloc, endpoint, region, keys), f"{parts.netloc}{parts.path}".rstrip("/")
    system, path = fs.FileSystem.from_uri(uri)
    return fs.PyFileSystem(Patient(system)), path


@lru_cache(maxsize=64)
def _s3(bucket: str, endpoint: str | None, region: str | None, keys: tuple[str | None, ...]) -> fs.FileSystem:
    region = region or (None if endpoint else patiently(lambda: fs.resolve_s3_region(bucket)))
    options = {"endpoint_override": endpoint, "region": region}
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=8)
    # a small file is then one request instead of three
    made = fs.S3FileSystem(
        allow_delayed_open=True, retry_strategy=retries, **{k: v for k, v in options.items() if v is not None}
    )
    return fs.PyFileSystem(Patient(made))


class Patient(fs.FileSystemHandler):
    """Another file system, whose passing faults are waited for. Reads are repeated; of writes, those of whole files."""

    def __init__(self, inner: fs.FileSystem) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patient) and self.inner == other.inner

    def __hash__(self) -> int:
        return hash(type(self.inner))

    def get_type_name(self) -> str:
        return f"patient+{self.inner.type_name}"

    def normalize_path(self, path: str) -> str:
        return self.inner.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return patiently(lambda: self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return patiently(lambda: self.inner.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        patiently(lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        patiently(lambda: self.inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        patiently(lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("medray empties no bucket")

    def delete_file(self, path: str) -> None:
        patiently(lambda: self.inner.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self.inner.move(src, dest)  # not repeated: the second time the source may be gone

    def copy_file(self, src: str, dest: str) -> None:
        patiently(lambda: self.inner.copy_file(src, dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        inner = patiently(lambda: self.inner.open_input_file(path))
        return as_file(Content(lambda size, start: patiently(lambda: inner.read_at(size, start)), inner.size(), inner))

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        return self.inner.open_output_stream(path, compression=None, metadata=metadata)

    def open_append_stream(self, path: str, metadata: object) -> pa.NativeFile:
        return self.inner.open_append_stream(path, compression=None, metadata=metadata)
