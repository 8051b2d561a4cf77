"""Who waits for whom: priority classes, ageing, admission, and what a minute may spend."""
