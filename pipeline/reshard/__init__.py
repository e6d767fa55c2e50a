"""Shards and a selection to curated shards."""
