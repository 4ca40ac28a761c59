"""Layers, neurons and the network families."""
