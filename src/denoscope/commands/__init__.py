"""The jobs behind the commands: explain, recognise, compare, evaluate."""
