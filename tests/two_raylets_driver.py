"""Jobs on two raylets that share an address and a session folder, as `ray start` makes them on one machine.

python two_raylets_driver.py FOLDER VERB… [, VERB…]    in a network namespace of its own

At 127.0.0.1 Ray also listens beyond loopback, therefore the namespace. Submits and follows each VERB with its options;
prints exit code, stdout, stderr and the number of nodes with actors of each as a JSON list.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray_cluster import TWO_RAYLETS, Cluster, cluster


def main(folder: Path, words: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever waits for this has no more patience
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    verbs = [verb.split("\n") for verb in "\n".join(words).split("\n,\n")]
    # no actor of a job begins before both are there, so that a busy machine leaves none without work
    with cluster(folder, TWO_RAYLETS, RAY_DATA_DEFAULT_WAIT_FOR_MIN_ACTORS_S="120") as here:
        print(json.dumps([followed(here, verb) for verb in verbs]))


def followed(here: Cluster, verb: list[str]) -> dict[str, Any]:
    before = {actor["actor_id"] for actor in actors(here)}
    done = here.medray("submit", *verb, "--json")
    new = [actor for actor in actors(here) if actor["actor_id"] not in before]
    of_the_work = [actor for actor in new if actor["class_name"] != "JobSupervisor"]
    nodes = {actor["node_id"] for actor in of_the_work} - {None, ""}  # one that never began has no node
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr, "nodes": len(nodes)}


def actors(here: Cluster) -> list[dict[str, Any]]:
    return here.get("/api/v0/actors?limit=1000")["data"]["result"]["result"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
