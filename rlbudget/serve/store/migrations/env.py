"""Runs the migrations on the connection that ``opening`` hands over."""

from __future__ import annotations

from alembic import context

from rlbudget.serve.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA,
    render_as_batch=True,
)  # fmt: skip
with context.begin_transaction():
    context.run_migrations()
