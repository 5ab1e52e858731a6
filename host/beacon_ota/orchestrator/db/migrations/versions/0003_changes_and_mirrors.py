"""Table of changes, mirrors; wider columns, because PostgreSQL enforces their sizes"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NUMBERS = {
    "attempts": (
        "bytes",
        "duration_ms",
        "trials",
        "reset_cause",
        "heap_free_min",
        "advertising_paused_ms",
    ),
    "beacons": ("reset_cause", "heap_free_min"),
}
_KEYS = ("id", "path", "webhook_id")
_TEXTS = {"audit": ("target", {}), "events": ("subject", {"sqlite_autoincrement": True})}


def upgrade() -> None:
    op.create_table(
        "changes",
        sa.Column("seq", _Serial, autoincrement=True, nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("worker", sa.String(length=24), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_changes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_changes_what_key"), "changes", ["what", "key"])
    op.create_table(
        "mirrors",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("site", sa.String(length=256), nullable=False),
        sa.Column("token_id", sa.String(length=8), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("removed_at", sa.Double(), nullable=True),
        sa.Column("epoch", sa.String(length=24), nullable=True),
        sa.Column("seq", _Serial, nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name=op.f("fk_mirrors_token_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mirrors")),
        sa.UniqueConstraint("name", name=op.f("uq_mirrors_name")),
    )
    for table, names in _NUMBERS.items():
        with op.batch_alter_table(table) as batch:
            for name in names:
                batch.alter_column(name, type_=sa.BigInteger(), existing_type=sa.Integer())
            if table == "attempts":
                batch.add_column(sa.Column("mirror", sa.String(length=24), nullable=True))
    for table, (name, options) in _TEXTS.items():
        with op.batch_alter_table(table, table_kwargs=options) as batch:
            batch.alter_column(
                name, type_=sa.String(length=256), existing_type=sa.String(length=128)
            )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE reports ALTER COLUMN id TYPE BIGINT")
        op.execute("ALTER SEQUENCE reports_id_seq AS BIGINT")
        _follow()


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for key in _KEYS:
            op.execute(f"DROP FUNCTION beacon_ota_changed_{key}() CASCADE")
    for table, (name, options) in _TEXTS.items():
        with op.batch_alter_table(table, table_kwargs=options) as batch:
            batch.alter_column(
                name, type_=sa.String(length=128), existing_type=sa.String(length=256)
            )
    for table, names in _NUMBERS.items():
        with op.batch_alter_table(table) as batch:
            for name in names:
                batch.alter_column(name, type_=sa.Integer(), existing_type=sa.BigInteger())
            if table == "attempts":
                batch.drop_column("mirror")
    op.drop_table("mirrors")
    op.drop_table("changes")


def _follow() -> None:
    """Have PostgreSQL write down what changed, and tell everybody that listens, once a commit."""
    for key in _KEYS:
        op.execute(
            f"""
            CREATE FUNCTION beacon_ota_changed_{key}() RETURNS trigger LANGUAGE plpgsql AS $$
            DECLARE
                changed text;
            BEGIN
                IF TG_OP = 'DELETE' THEN changed := OLD.{key}; ELSE changed := NEW.{key}; END IF;
                INSERT INTO changes (what, key, worker) VALUES (
                    TG_TABLE_NAME, changed, NULLIF(current_setting('beacon_ota.worker', true), '')
                );
                PERFORM pg_notify('beacon_ota', '');
                RETURN NULL;
            END $$
            """
        )
    for table, key, when in (
        ("attempts", "id", "INSERT OR UPDATE"),
        ("beacons", "id", "INSERT OR UPDATE OR DELETE"),
        ("events", "id", "INSERT"),
        ("deliveries", "webhook_id", "INSERT"),
        ("firmwares", "id", "INSERT OR UPDATE"),
        ("rollouts", "id", "INSERT OR UPDATE"),
        ("sites", "path", "INSERT OR UPDATE OR DELETE"),
        ("webhooks", "id", "INSERT OR DELETE OR UPDATE OF url, secret, kinds, disabled_at"),
    ):
        op.execute(
            f"CREATE TRIGGER beacon_ota_changed AFTER {when} ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION beacon_ota_changed_{key}()"
        )
