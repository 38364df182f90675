"""Cluster entry point: python jobs/score.py RUN.toml [options]. The same verb as `medray score`, same exit codes."""

import sys

from medray.cli import app

if __name__ == "__main__":
    app(["score", *sys.argv[1:]])
