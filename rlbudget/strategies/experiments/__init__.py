"""Experiments on served requests: arms, anytime-valid intervals, guard-rails."""
