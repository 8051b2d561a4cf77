"""Choosing among models whose answer to use: what it costs, the meta-model, its folder."""
