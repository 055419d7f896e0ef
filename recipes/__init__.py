"""Recipes: from judge data to policies trained on a judge's feedback."""
