"""Data for judges: human ratings, choices, captions, synthesis out of good answers."""
