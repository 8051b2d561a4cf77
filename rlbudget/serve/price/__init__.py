"""The token price, steered: to a floor under exact match, a budget of tokens, a latency."""
