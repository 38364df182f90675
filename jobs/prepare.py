"""Cluster entry point: python jobs/prepare.py RUN.toml [options]. The same verb as `medray prepare`, same exit codes."""

from medray.cli.job import run

if __name__ == "__main__":
    run("prepare")
