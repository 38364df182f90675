"""The one execution noun: a flow of stages over shards, its lane, its driver, and a sink of tables."""
