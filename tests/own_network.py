"""Servers in a network of their own, for those that would listen on every interface: nobody but the test reaches them.

A relay in that network listens on a socket file, and one out here on the loopback passes connections on to it.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def own_network() -> list[str] | None:
    """How a command is run in a network namespace of its own; None where that is not permitted."""
    for rights in ([], ["--map-root-user"]):
        command = ["unshare", "--net", *rights]
        with suppress(OSError):
            up = subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
            if up.returncode == 0:
                return command
    return None


@contextmanager
def reached(
    alone: list[str], command: list[str], port: int, *, environment: Mapping[str, str], log: IO[bytes]
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Runs a server, which listens on `port` of its own network: (port of the loopback here, its process)."""
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        path = f"{folder}/socket"
        inside = [*alone, sys.executable, __file__, path, str(port), *command]
        with (
            subprocess.Popen(inside, env=environment, stdout=log, stderr=log) as process,
            _relay(lambda: asyncio.open_unix_connection(path)) as here,
        ):
            try:
                yield here, process
            finally:
                process.terminate()
                process.wait(timeout=30)


@contextmanager
def _relay(connect: Callable[[], Awaitable[Streams]]) -> Iterator[int]:
    """Port of the loopback whose connections go on to where `connect` leads."""
    loop, listening, ports = asyncio.new_event_loop(), threading.Event(), list[int]()

    async def listen() -> None:
        server = await asyncio.start_server(_passing_on(connect), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        listening.set()
        await server.serve_forever()

    def run() -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(listening_task)

    listening_task = loop.create_task(listen())
    thread = threading.Thread(target=run)
    thread.start()
    listening.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(listening_task.cancel)
        thread.join()
        loop.close()


def _passing_on(
    connect: Callable[[], Awaitable[Streams]],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await reader.read(65536):
                writer.write(content)
                await writer.drain()
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await connect()
        except OSError:  # it has not started yet
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return pass_on


def _inside(path: str, port: int, command: list[str]) -> int:
    """The relay in the server's network, until the server ends."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with subprocess.Popen(command) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())

        async def listen() -> None:
            passing_on = _passing_on(lambda: asyncio.open_connection("127.0.0.1", port))
            await (await asyncio.start_unix_server(passing_on, path)).serve_forever()

        threading.Thread(target=asyncio.run, args=(listen(),), daemon=True).start()
        return server.wait()


if __name__ == "__main__":
    sys.exit(_inside(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
