"""Where: one class per method, each with the one method that explains a step."""
