"""Checks of a verl config before a run: is the judge called, can groups fill, is there room."""
