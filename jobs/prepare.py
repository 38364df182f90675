"""Cluster entry point: python jobs/prepare.py RUN.toml [options]. The same verb as `medray prepare`, same exit codes."""

import sys

from medray.cli import app

if __name__ == "__main__":
    app(["prepare", *sys.argv[1:]])
