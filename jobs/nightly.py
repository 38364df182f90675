"""Cluster entry point: python jobs/nightly.py RUN.toml [options]. The same verb as `medray nightly`, same exit codes."""

import sys

from medray.cli import app

if __name__ == "__main__":
    app(["nightly", *sys.argv[1:]])
