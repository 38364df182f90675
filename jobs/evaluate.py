"""Cluster entry point: python jobs/evaluate.py RUN.toml [options]. The same verb as `medray evaluate`, same exit codes."""

import sys

from medray.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
