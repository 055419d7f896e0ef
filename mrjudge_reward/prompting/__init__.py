"""What a judge is shown and how its answer is read: formats, templates, outside text made safe, parsing."""
