"""Studies behind published figures: many runs at once, what each judge makes of a policy."""
