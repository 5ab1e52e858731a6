"""Block indexes of encrypted releases; what an attempt fetched, kept and wrote"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_MEASURED = ("bytes_fetched", "sectors_kept", "sectors_written")


def upgrade() -> None:
    with op.batch_alter_table("firmwares") as batch:
        batch.add_column(sa.Column("blocks", sa.Text(), nullable=True))
    with op.batch_alter_table("attempts") as batch:
        for name in _MEASURED:
            batch.add_column(sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("attempts") as batch:
        for name in _MEASURED:
            batch.drop_column(name)
    with op.batch_alter_table("firmwares") as batch:
        batch.drop_column("blocks")
