"""Files and folders that appear whole or not at all, and the claim on the place where one appears.

A room of its own, above all that write: recorded traces and results alike.
"""
