"""Where a request's time went, and texts of those that want them kept."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SECONDS = (
    "gateway_s",
    "queue_s",
    "router_s",
    "adapter_load_s",
    "engine_ttft_s",
    "ttft_s",
    "ledger_s",
    "total_s",
)


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("usage", sa.Column("status", sa.Integer))
    op.add_column("usage", sa.Column("engine", sa.String(128)))
    op.add_column("usage", sa.Column("migrations", sa.Integer))
    for name in _SECONDS:
        op.add_column("usage", sa.Column(name, sa.Double))
    op.create_index("ix_usage_ended", "usage", ["ended_s"])
    op.create_index("ix_usage_client_request", "usage", ["client_request_id"])
    op.create_table(
        "request_texts",
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("ended_s", sa.Double, nullable=False, index=True),
        sa.Column("path", sa.String(64), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("is_whole", sa.Boolean, nullable=False),
    )
    op.create_index("ix_request_texts_tenant_ended", "request_texts", ["tenant_id", "ended_s"])


def downgrade() -> None:
    """Drop them, and what is in them."""
    op.drop_table("request_texts")
    op.drop_index("ix_usage_client_request", "usage")
    op.drop_index("ix_usage_ended", "usage")
    for name in ("status", "engine", "migrations", *_SECONDS):
        op.drop_column("usage", name)
