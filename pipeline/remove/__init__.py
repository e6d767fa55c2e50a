"""Takedowns: rows that a list names are purged from every file of a dataset; a tombstone of each stays."""
