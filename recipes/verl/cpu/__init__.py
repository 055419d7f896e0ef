"""verl on CPU cores, for trying and testing."""
