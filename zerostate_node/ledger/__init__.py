"""Durable truth: SQLite behind the `Ledger` and `Journal` ports."""
