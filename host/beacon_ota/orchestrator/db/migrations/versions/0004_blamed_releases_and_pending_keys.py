"""Which release a beacon has called bad; keys that a beacon may have been given"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("attempts") as batch:
        batch.add_column(sa.Column("blamed_at", sa.Double(), nullable=True))
    with op.batch_alter_table("beacons") as batch:
        batch.add_column(sa.Column("given_keys", sa.LargeBinary(), nullable=True))
    op.execute("UPDATE beacons SET given_keys = next_key")
    # What beacons have said so far counts, too.
    op.execute(
        """
        UPDATE attempts SET blamed_at = ended_at WHERE ended_at IS NOT NULL AND (
            (result = 'rolled_back' AND failed_in = 'boot'
                AND code IN ('self_test', 'crash', 'watchdog'))
            OR (result = 'failed' AND failed_in = 'verify' AND code = 'known_bad')
        )
        """
    )


def downgrade() -> None:
    with op.batch_alter_table("attempts") as batch:
        batch.drop_column("blamed_at")
    with op.batch_alter_table("beacons") as batch:
        batch.drop_column("given_keys")
