"""Bytes to values and back. Pure: no clock, no dice, no I/O."""
