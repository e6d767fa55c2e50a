"""Published weights ↔ ours, both ways: names and shapes, a file for each model."""
