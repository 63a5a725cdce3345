"""
Durable truth in SQLite: the `Ledger` and the `Journal`, their one writer each, their migrations,
and the data directory that they live in.
"""
