"""A search through a person's own pictures: near-duplicates, more like this, classes, a report (06)."""
