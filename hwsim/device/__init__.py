"""Device layer: how cells hold a weight (stores), how they spread (variation), and the cards that give the numbers."""
