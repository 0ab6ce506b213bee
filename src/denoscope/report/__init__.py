"""Self-contained pages of results, written from labelled arrays: no tensor, no model."""
