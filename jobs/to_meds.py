"""Cluster entry point: python jobs/to_meds.py RUN.toml [options]. The same verb as `medray ehr to-meds`, same exit codes."""

import sys

from medray.cli import app

if __name__ == "__main__":
    app(["ehr", "to-meds", *sys.argv[1:]])
