"""Cluster entry point: python jobs/train.py RUN.toml [options]. The same verb as `medray train`, same exit codes."""

from medray.cli.job import run

if __name__ == "__main__":
    run("train")
