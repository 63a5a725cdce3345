"""Trio services, one noun each: they perform what the machines decide."""
