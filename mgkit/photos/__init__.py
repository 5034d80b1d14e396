"""Search in a person's own pictures: near-duplicates, similar pictures, classes, a report (06)."""
