"""Worlds: pictures whose truth is known.

The shapes world has scenes with exact masks and a judge that reads its pictures (`shapes`, with `facts` and `readers`).
The exact worlds are distributions whose denoiser is a formula (`exact`).
"""
