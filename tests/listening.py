"""What the processes of a tree listen on (TCP), as the kernel has it in /proc/net."""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"
"""State of a socket in /proc/net/tcp (linux/include/net/tcp_states.h)."""


class Listener(NamedTuple):
    """A listening socket and one process that holds it."""

    address: str
    port: int
    command: str

    @property
    def is_loopback(self) -> bool:
        """Reached from this machine alone; ::ffff:127.0.0.1 is the loopback of IPv4 on a socket of IPv6."""
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(place.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.parent.name))
    tree = [pid]
    for each in tree:
        tree += children.get(each, [])
    return tree


def listeners(pid: int) -> list[Listener]:
    """Listening TCP sockets of a process and its descendants."""
    holders: dict[str, str] = {}
    for each in descendants(pid):
        with suppress(OSError):
            command = Path(f"/proc/{each}/cmdline").read_text().replace("\0", " ").strip()
            if not command:  # it has just ended, or is about to bear another title: the next look tells
                continue
            for handle in os.listdir(f"/proc/{each}/fd"):
                with suppress(OSError):
                    target = os.readlink(f"/proc/{each}/fd/{handle}")
                    if target.startswith("socket:["):
                        holders[target[8:-1]] = command
    return [
        Listener(address, port, holders[inode])
        for table in ("tcp", "tcp6")
        for address, port, inode in _listening(table)
        if inode in holders
    ]


def _listening(table: str) -> Iterator[tuple[str, int, str]]:
    """(address, port, inode) of listening sockets; an address is words of 32 bits in the machine's order."""
    for line in Path("/proc/net", table).read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTEN:
            words, _, port = fields[1].partition(":")
            packed = b"".join(struct.pack("<I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
            yield str(ipaddress.ip_address(packed)), int(port, 16), fields[9]
