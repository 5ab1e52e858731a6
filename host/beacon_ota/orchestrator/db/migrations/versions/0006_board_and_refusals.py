"""Which board a beacon says it is; why and when it was refused last"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ADDED = (
    ("said_type", sa.String(length=32)),
    ("refused_code", sa.String(length=32)),
    ("refused_at", sa.Double()),
    ("refusals", sa.Integer()),
)


def upgrade() -> None:
    with op.batch_alter_table("beacons") as batch:
        for name, kind in _ADDED:
            batch.add_column(sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("beacons") as batch:
        for name, _kind in _ADDED:
            batch.drop_column(name)
