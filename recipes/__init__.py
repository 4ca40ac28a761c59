"""Recipes, shipped as data: one YAML file each."""
