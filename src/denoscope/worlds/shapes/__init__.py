"""The shapes world: scenes with exact masks and captions (`scenes`), and a judge of its pictures (`judge`).

The bundled model, "shapes", is trained on it.
"""
