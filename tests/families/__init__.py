"""Small pipelines of many families of diffusers, built from configs with random weights."""
