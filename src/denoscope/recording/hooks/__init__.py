"""The only folder that touches a live module.

Every change is a context manager that undoes itself in `finally`. No pipeline is known by name here: which part of the
denoiser's input is the sample, how it was scaled and how the guidance halves were combined are read off the recorded
numbers, and a `Replay` is checked against them.
"""
