"""What notebooks show: figures, stills, widgets, tables."""
