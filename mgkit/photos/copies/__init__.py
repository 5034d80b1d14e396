"""Near-duplicates: edited copies, thresholds, groups."""
