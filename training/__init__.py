"""Models, objectives and the one training loop. Empty until the first model moves in."""
