"""Adapters and their versions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(512), primary_key=True),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("deleted_s", sa.Double),
        sa.Column("version", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "adapter_versions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("source", sa.String(2048), nullable=False),
        sa.Column("mark", sa.String(64), nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, index=True),
        sa.UniqueConstraint("name", "content"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Drop the tables, and what is in them."""
    for table in ("adapter_versions", "adapters"):
        op.drop_table(table)
