"""When: likelihood along the steps, and when an attribute is decided."""
