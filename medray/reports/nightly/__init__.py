"""What a person reads in the morning: the summary of a night, and its page."""

from __future__ import annotations

from medray.reports.nightly.page import write_page
from medray.reports.nightly.summary import BundleNight, Summary

__all__ = ["BundleNight", "Summary", "write_page"]
