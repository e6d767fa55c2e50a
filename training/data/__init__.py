"""Shards and a selection as batches, in an order that any number of ranks and workers agree on."""
