"""The only folder that touches a live module: every change is undone in `finally`."""
