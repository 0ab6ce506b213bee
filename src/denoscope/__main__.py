"""`python -m denoscope`."""

from .cli import main

main()
