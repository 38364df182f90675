"""Distributed training and batch scoring of medical data on Ray."""

__version__ = "0.1.0"
