"""A module a change of the tables."""
