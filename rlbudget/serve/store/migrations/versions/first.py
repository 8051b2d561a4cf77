"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "first"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_LINES = ("decisions", "audits", "outcomes", "shadows")


def upgrade() -> None:
    """Make them."""
    for name in _LINES:
        more = []
        if name == "decisions":
            more = [sa.Column("experiment", sa.String(200)), sa.Column("arm", sa.String(200)),
                    sa.Column("unit", sa.String(64))]  # fmt: skip
        op.create_table(
            name,
            sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
            sa.Column("at", sa.Float(53), nullable=False),
            sa.Column("request_id", sa.Text, nullable=False),
            *more,
            sa.Column("line", sa.Text, nullable=False),
        )
        op.create_index(f"ix_{name}_at", name, ["at"])
        op.create_index(f"ix_{name}_request_id", name, ["request_id"])
    op.create_index("ix_decisions_experiment_id", "decisions", ["experiment", "id"])
    op.create_table(
        "prices",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("plan", sa.String(200), nullable=False),
        sa.Column("token_price", sa.Float(53)),
        sa.Column("why", sa.Text, nullable=False),
    )
    op.create_index("ix_prices_at", "prices", ["at"])
    op.create_table(
        "experiments",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
    )
    op.create_index("ix_events_at", "events", ["at"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Take them away."""
    for name in (*_LINES, "prices", "experiments", "events", "secrets"):
        op.drop_table(name)
