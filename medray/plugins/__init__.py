"""Plug-ins: what other installed distributions bring, and types of settings that are chosen by a `kind` among them."""

LOADED = "medray_loaded"
"""Metadata of a schema that takes more than it lists: a function that gives the schemas of what else was asked for."""
