"""The block index that comes with an encrypted release"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("firmwares") as batch:
        batch.add_column(sa.Column("blocks", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("firmwares") as batch:
        batch.drop_column("blocks")
