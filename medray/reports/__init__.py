"""Pages for people: the evaluation report and the morning page."""
