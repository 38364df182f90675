"""Run files: TOML to types."""
