"""verl: configs for training policies and judges."""
