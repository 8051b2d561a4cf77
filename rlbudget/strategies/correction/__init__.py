"""Withdrawing an exit whose written answer is probably wrong, on a replay and live."""
