"""Replay, rules, the oracle, the frontier and the paired bootstrap: what a stop rule is worth."""
