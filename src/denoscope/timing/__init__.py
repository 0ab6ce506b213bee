"""Timing: the step at which something is decided.

`likelihood` follows a classifier's labels along a sequence. `commitment` has three experiments on recorded runs, and
`windows` estimates from them when each attribute of a picture is decided, over scenes, with intervals.
"""
