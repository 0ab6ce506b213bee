"""Pages, from arrays alone."""
