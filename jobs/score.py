"""Cluster entry point: python jobs/score.py RUN.toml [options]. The same verb as `medray score`, same exit codes."""

from medray.cli.job import run

if __name__ == "__main__":
    run("score")
