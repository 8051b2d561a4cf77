"""Decoding: live under a policy, and recording."""
