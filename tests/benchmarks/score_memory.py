"""Peak memory of a scoring run over an archive, and over one ten times as large.

    python tests/benchmarks/score_memory.py [--files 400] [--size 512] [--processes 2] [--folder DIR]

Private memory (resident less shared) of the driver and of every actor, added up ten times a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from score_images import make_archive, make_bundle


def private_bytes(session: int) -> dict[str, int]:
    """{driver or actor: bytes} of the processes of a session; Ray's own daemons are left out."""
    found = {"driver": 0, "actors": 0}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) != session:
                continue
            title = (entry / "cmdline").read_bytes()
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
        except (OSError, ProcessLookupError):
            continue  # it has just ended
        kind = "actors" if title.startswith(b"ray::MapWorker") else "driver" if int(entry.name) == session else None
        if kind and "VmRSS" in status:
            found[kind] += 1024 * (int(status["VmRSS"].split()[0]) - int(status["RssShmem"].split()[0]))
    return found


def peak(archive: Path, bundle: str, out: Path, processes: int) -> dict[str, int]:
    command = [sys.executable, str(Path(__file__).with_name("score_images.py")), "--processes", str(processes)]
    command += ["--child", "medray", str(archive), bundle, str(out)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    most = {"driver": 0, "actors": 0, "all": 0}
    while child.poll() is None:
        now = private_bytes(child.pid)
        now["all"] = now["driver"] + now["actors"]
        most = {name: max(most[name], now[name]) for name in most}
        time.sleep(0.1)
    if child.returncode:
        raise SystemExit(f"the scoring run ended with code {child.returncode}")
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where archives are made and kept; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        folder = arguments.folder or Path(scratch)
        bundle = str(folder / f"bundle-{arguments.size}")
        if not Path(bundle).exists():
            make_bundle(bundle, arguments.size)
        found = {}
        for count in (arguments.files, 10 * arguments.files):
            archive = folder / f"archive-{count}-{arguments.size}"
            if not archive.exists():
                make_archive(archive, count, arguments.size)
            out = Path(tempfile.mkdtemp(prefix=f"memory-{count}-", dir=scratch))
            found[count] = peak(archive, bundle, out, arguments.processes)
    few, many = found.values()
    print(f"{'entries':>8} {'driver MB':>10} {'actors MB':>10} {'all MB':>8}")
    for count, most in found.items():
        print(f"{count:>8} {most['driver'] / 1e6:>10.0f} {most['actors'] / 1e6:>10.0f} {most['all'] / 1e6:>8.0f}")
    print(f"ten times the entries: {many['all'] / few['all']:.2f} times the memory")


if __name__ == "__main__":
    main()
