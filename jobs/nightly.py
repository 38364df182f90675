"""Cluster entry point: python jobs/nightly.py RUN.toml [options]. The same verb as `medray nightly`, same exit codes."""

from medray.cli.job import run

if __name__ == "__main__":
    run("nightly")
