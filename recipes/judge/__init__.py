"""Training the judge: warm-up, reinforcement, packing."""
