"""Url tables to shards: split, drop repeated rows, fetch, convert, store."""
