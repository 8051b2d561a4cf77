"""Ways to steer the trade-off between tokens and exact match in production.

Each file is one strategy. A strategy changes the price, the rule, the model or the answer; none
decides about stopping by itself, and each acts on recorded traces exactly as it acts live.
"""
