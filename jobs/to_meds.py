"""Cluster entry point: python jobs/to_meds.py RUN.toml [options]. The same verb as `medray ehr to-meds`, same exit codes."""

from medray.cli.job import run

if __name__ == "__main__":
    run("ehr", "to-meds")
