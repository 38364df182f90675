"""Readers of sequence and variant files."""
