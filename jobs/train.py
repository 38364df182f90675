"""Cluster entry point: python jobs/train.py RUN.toml [options]. The same verb as `medray train`, same exit codes."""

import sys

from medray.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
