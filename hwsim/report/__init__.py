"""What a run leaves to read: counts, energy, tables, figures."""
