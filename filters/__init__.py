"""Curation: scorers write columns, rules decide over them."""
