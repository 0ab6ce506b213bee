"""A run, kept so that it can be asked again."""
