"""Exchanges of mirrors by disk, halts of mirrors, and beacons that have left their sites"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("mirrors", sa.Column("even_at", sa.Double(), nullable=True))
    op.create_table(
        "mirror_books",
        sa.Column("mirror_id", sa.String(length=24), nullable=False),
        sa.Column("epoch", sa.String(length=24), nullable=False),
        sa.Column("mark", sa.String(length=24), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("told_at", sa.Double(), nullable=False),
        _of_a_mirror("mirror_books"),
        sa.PrimaryKeyConstraint("mirror_id", "epoch", name=op.f("pk_mirror_books")),
    )
    op.create_table(
        "mirror_halts",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("mirror_id", sa.String(length=24), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        _of_a_mirror("mirror_halts"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mirror_halts")),
    )
    op.create_table(
        "former_beacons",
        sa.Column("mirror_id", sa.String(length=24), nullable=False),
        sa.Column("beacon_id", sa.String(length=64), nullable=False),
        sa.Column("key_digest", sa.String(length=64), nullable=False),
        _of_a_mirror("former_beacons"),
        sa.PrimaryKeyConstraint("mirror_id", "beacon_id", name=op.f("pk_former_beacons")),
    )
    op.execute(
        "INSERT INTO mirror_books (mirror_id, epoch, seq, told_at)"
        " SELECT id, epoch, seq, COALESCE(seen_at, created_at) FROM mirrors"
        " WHERE epoch IS NOT NULL"
    )


def downgrade() -> None:
    for table in ("former_beacons", "mirror_halts", "mirror_books"):
        op.drop_table(table)
    with op.batch_alter_table("mirrors") as batch:
        batch.drop_column("even_at")


def _of_a_mirror(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_mirror_id")
    return sa.ForeignKeyConstraint(["mirror_id"], ["mirrors.id"], name=name)
