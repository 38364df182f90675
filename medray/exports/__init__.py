"""Scores in other people's formats."""
