"""What a run leaves for those who watch it: its log, canaries, the report."""
