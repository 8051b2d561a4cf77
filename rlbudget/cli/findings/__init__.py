"""What each step found, and what is odd about it: pure functions from results to lines.

A fact is said plainly. What is odd is said with what to do about it, and never stops a step.
"""
