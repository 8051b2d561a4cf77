"""Experiments on the requests of a gateway, kept in its store."""
