"""Plug-ins: what other installed distributions bring, and types of settings that are chosen by a `kind` among them."""
