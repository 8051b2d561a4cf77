"""What each strategy adds: guard, floors and budgets, cascade, feedback, and all together."""
