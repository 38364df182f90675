"""The HTML report of one evaluated bundle: one page, no other files, readable offline, on paper and in the dark.

`ReportFacts` holds what the caller knows. Nothing here knows the modality: the pictures of mistakes are whatever the caller
gives, or none. Nor the objective: its metrics, charts and words are what it says of itself.
"""

from __future__ import annotations

from medray.reports.evaluation.facts import Mistake, ReportFacts, ScoringRun
from medray.reports.evaluation.page import write_report

__all__ = ["Mistake", "ReportFacts", "ScoringRun", "write_report"]
