"""Recipes: their settings, stages and runs."""
