"""Cluster entry point: python jobs/index.py RUN.toml [options]. The same verb as `medray index`, same exit codes."""

from medray.cli.job import run

if __name__ == "__main__":
    run("index")
