"""Still and moving pictures of results, drawn from labelled arrays: no tensor, no model."""
