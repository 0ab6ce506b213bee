"""Still and moving pictures, from arrays alone."""
