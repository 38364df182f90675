"""A job server on the loopback that speaks what Ray's client asks of one, and whose log stream breaks when told.

Ray's own server cannot be made to break in the middle of a character, or to fall silent.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class FlakyServer:
    """One job with the log `text`; the first `losses` streams of it end early, by a reset or (`silent`) by no word more."""

    text: str
    pieces: int
    """Characters sent at once."""
    losses: int
    silent: bool = False
    streams: int = 0
    stopped: bool = False
    url: str = ""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> FlakyServer:
        ready: Future[str] = Future()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self.thread.start()
        self.url = ready.result(timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self.thread.join(timeout=10)

    async def _serve(self, ready: Future[str]) -> None:
        self.loop = asyncio.get_running_loop()
        app = web.Application()
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/jobs/{id}", self.job)
        app.router.add_get("/api/jobs/{id}/logs", self.log)
        app.router.add_get("/api/jobs/{id}/logs/tail", self.tail)
        app.router.add_post("/api/jobs/{id}/stop", self.stop)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        ready.set_result(f"http://{host}:{port}")
        await self._stop.wait()
        await runner.cleanup()

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def job(self, request: web.Request) -> web.Response:
        over = self.streams > self.losses
        facts = {"type": "SUBMISSION", "submission_id": request.match_info["id"], "entrypoint": "", "start_time": 1}
        status = {"status": "SUCCEEDED", "driver_exit_code": 0} if over else {"status": "RUNNING"}
        status = {"status": "STOPPED"} if self.stopped else status
        return web.json_response(facts | status)

    async def stop(self, request: web.Request) -> web.Response:
        self.stopped = True
        return web.json_response({"stopped": True})

    async def log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.text})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.streams += 1
        lost = self.streams <= self.losses
        end = self.streams * 37 if lost else len(self.text)
        for start in range(0, end, self.pieces):
            await socket.send_str(self.text[start : min(start + self.pieces, end)])
        if lost and self.silent:
            await self._stop.wait()
        elif lost and request.transport is not None:
            await asyncio.sleep(0.05)  # what was sent arrives
            request.transport.abort()
        return socket
