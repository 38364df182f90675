"""Bytes where they lie: local and remote files, files of rows, SQL over them, locks, Delta tables, Arrow helpers."""
