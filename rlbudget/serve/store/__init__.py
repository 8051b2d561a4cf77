"""The gateway's store: decisions, feedback, audits, experiments, prices, in SQLite or PostgreSQL."""
