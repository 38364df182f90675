"""Cluster entry point: python jobs/evaluate.py RUN.toml [options]. The same verb as `medray evaluate`, same exit codes."""

from medray.cli.job import run

if __name__ == "__main__":
    run("evaluate")
