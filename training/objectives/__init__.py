"""(outputs, batch) → mean loss. torch only."""
