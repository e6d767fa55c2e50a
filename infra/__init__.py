"""Ground: pairs, shards, tables, ledger, jobs and executors. Knows no model and no filter."""
