"""Rubrics: named criteria with weights, and the shapes in which public sets keep them."""
