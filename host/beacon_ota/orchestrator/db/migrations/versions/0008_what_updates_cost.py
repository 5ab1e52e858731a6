"""What an attempt cost: bytes fetched, sectors kept and written"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ADDED = ("bytes_fetched", "sectors_kept", "sectors_written")


def upgrade() -> None:
    with op.batch_alter_table("attempts") as batch:
        for name in _ADDED:
            batch.add_column(sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("attempts") as batch:
        for name in _ADDED:
            batch.drop_column(name)
