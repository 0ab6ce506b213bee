"""The shapes world: scenes with exact masks, a judge of pictures, and the model trained on them."""
