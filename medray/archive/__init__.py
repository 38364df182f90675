"""What an archive holds: entries, their manifest, and what changed in it since the last index."""
