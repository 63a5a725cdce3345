"""Deciding: facts in, state and effects out. Pure: no clock, no dice, no I/O."""
