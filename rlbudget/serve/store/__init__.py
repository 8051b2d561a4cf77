"""The gateway's store: decisions, feedback, audits, experiments and prices."""
