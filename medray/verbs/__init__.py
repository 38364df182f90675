"""The verbs: what a run file can be asked to do. Each takes a run, an engine and a progress, and returns a result."""
