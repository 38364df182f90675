"""Cluster entry point: python jobs/index.py RUN.toml [options]. The same verb as `medray index`, same exit codes."""

import sys

from medray.cli import app

if __name__ == "__main__":
    app(["index", *sys.argv[1:]])
