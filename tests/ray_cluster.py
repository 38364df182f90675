"""A real cluster on the loopback: `ray start` for a head and two workers, each with a raylet, an address and a folder of
its own, and a token. Everything is stopped by the process ids that were started here: `ray stop` would end every Ray of
the machine.

The head has an address of its own too: 127.0.0.1 itself Ray replaces by the machine's. Names
begin with 127, so nothing leaves the machine, and no rights are needed, as they are for network namespaces.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Node:
    address: str
    session: str
    """Name of the folder for its session, that of another node or its own."""
    cpus: int


def three_nodes() -> list[Node]:
    """A head without CPUs and two workers, each with an address that no other cluster of the machine has."""
    network = f"127.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}"
    return [Node(f"{network}.{number}", str(number), cpus) for number, cpus in ((2, 0), (3, 1), (4, 1))]


TWO_RAYLETS = [Node("127.0.0.1", "one", 1)] * 2
"""As `ray start` makes them by default: one address, one session folder. For a network namespace without another."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Cluster:
    url: str
    token: Path
    """File with the token."""
    folder: Path

    def env(self, **changes: str | None) -> dict[str, str]:
        """Of a client process: the token, and nothing that says where another Ray is."""
        given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "PYTHONPATH": str(PROJECT)} | changes
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {name: value for name, value in (kept | given).items() if value is not None}

    def medray(
        self, *words: str | Path, address: str | None = None, **env: str | None
    ) -> subprocess.CompletedProcess[str]:
        """The command as a process of its own, to the job server at `address`."""
        return _ran(self.command(*words, address=address), self.env(**env))

    def medray_here(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command that asks no cluster."""
        return _ran([sys.executable, "-m", "medray.cli", *map(str, words)], self.env())

    def command(self, *words: str | Path, address: str | None = None) -> list[str]:
        return [sys.executable, "-m", "medray.cli", *map(str, words), "--address", address or self.url]

    def get(self, path: str) -> dict:
        header = {"Authorization": f"Bearer {self.token.read_text()}"}
        return requests.get(self.url + path, headers=header, timeout=10).json()


def _ran(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, env=env, check=False, timeout=200, **quiet)


@contextmanager
def cluster(folder: Path, nodes: Sequence[Node] | None = None, **env: str) -> Iterator[Cluster]:
    """`nodes`, by default `three_nodes`, the head first; all on this machine, with `env` in their environment."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client = free_ports(3)
    head, *workers = nodes or three_nodes()
    here = Cluster(f"http://127.0.0.1:{dashboard}", token, folder)
    started: list[subprocess.Popen[bytes]] = []
    # The socket's path below a node's folder has to stay under 107 characters.
    short = Path(os.environ.get("TMPDIR", "/tmp")) / f"mr{secrets.token_hex(3)}"
    try:
        options = ["--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        options += ["--include-dashboard=true", f"--ray-client-server-port={client}"]
        started.append(_start(here, short, head, options, env))
        _until("the head listens", started, here, lambda: _listens(head.address, gcs))
        for worker in workers:
            started.append(_start(here, short, worker, [f"--address={head.address}:{gcs}"], env))
        _until("all nodes are there", started, here, lambda: _nodes(here) == 1 + len(workers))
        yield here
    finally:
        _end(started)
        subprocess.run(["rm", "-rf", str(short)], check=True)


def _start(
    here: Cluster, short: Path, node: Node, options: list[str], more: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    command = ["ray", "start", "--block", f"--node-ip-address={node.address}", f"--num-cpus={node.cpus}", *options]
    command += ["--disable-usage-stats", "--object-store-memory=80000000", f"--temp-dir={short / node.session}"]
    command.append(f"--dashboard-agent-listen-port={free_ports(1)[0]}")
    number = len(list(here.folder.glob("node*.log")))
    with open(here.folder / f"node{number}.log", "wb") as log:
        # of another PYTHONPATH than the client's, and beside another medray: a job has to bring its own along
        env = here.env(PYTHONPATH=None, OMP_NUM_THREADS="1", **more)
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        stand = other_code(here.folder / "stand")
        return subprocess.Popen(command, env=env, cwd=stand, stdout=log, stderr=log, start_new_session=True)


def other_code(folder: Path) -> Path:
    """`folder`, with a package `medray` that is not to be imported."""
    (folder / "medray").mkdir(parents=True, exist_ok=True)
    (folder / "medray" / "__init__.py").write_text('raise ImportError("this is not what was sent")\n')
    return folder


def _nodes(here: Cluster) -> int:
    with suppress(requests.RequestException, ValueError):  # the dashboard comes up after the head
        found = here.get("/nodes?view=summary")["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in found)
    return 0


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _until(what: str, started: list[subprocess.Popen[bytes]], here: Cluster, true, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not true():
        dead = [each for each in started if each.poll() is not None]
        if dead or time.monotonic() > until:
            logs = "\n".join(log.read_text(errors="replace")[-1500:] for log in here.folder.glob("node*.log"))
            raise RuntimeError(f"waited for: {what}\n{logs}")
        time.sleep(0.2)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    """Workers first; each with all that it has started."""
    held = [pid for node in started for pid in below(node.pid)]
    for node in reversed(started):
        node.send_signal(signal.SIGTERM)
    until = time.monotonic() + 5
    while (alive := [pid for pid in held if _parent(pid) is not None]) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for node in started:
        node.wait(timeout=20)


def below(pid: int) -> list[int]:
    """Processes that this one has started, and those that they have."""
    parents = {int(name): _parent(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def _parent(pid: int) -> int | None:
    """None: it has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


# --- between client and cluster -------------------------------------------------------------------------------


@dataclass
class Proxy:
    """Passes TCP connections on to the job server. It can be cut: open connections end, new ones are refused."""

    target: int
    tls: ssl.SSLContext | None = None
    port: int = 0
    passed: int = 0
    """Connections that were opened."""
    refuse_until: float = 0.0
    swallow: bytes | None = None
    """The answer to the first request that begins so is lost: the connection ends before it."""
    swallowed: int = 0
    open: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Proxy:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.cut()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def cut(self, seconds: float = 0.0) -> None:
        """End every connection, and refuse new ones for so long."""
        self.refuse_until = time.monotonic() + seconds
        for each in self.open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:  # closed
                return
            if time.monotonic() < self.refuse_until:
                near.close()
                continue
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        try:
            near = near if self.tls is None else self.tls.wrap_socket(near, server_side=True)
        except OSError:  # a client that does not trust the certificate
            near.close()
            return
        with near, socket.create_connection(("127.0.0.1", self.target)) as far:
            self.passed += 1
            self.open += [near, far]
            lost = threading.Event()
            """The answer to what is asked here is lost."""
            asking = threading.Thread(target=self._pass, args=(near, far, True, lost), daemon=True)
            asking.start()
            self._pass(far, near, False, lost)
            asking.join()

    def _pass(self, source: socket.socket, target: socket.socket, asking: bool, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if asking and self.swallow and data.startswith(self.swallow) and not self.swallowed:
                    self.swallowed += 1
                    lost.set()
                if not asking and lost.is_set():
                    break  # the server has answered; the client does not hear it
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
