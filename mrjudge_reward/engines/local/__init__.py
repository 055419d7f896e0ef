"""A judge in this process, on transformers."""
