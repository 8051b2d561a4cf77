"""How fast: training, a decision, evaluation, import, the recorder."""
