"""First schema"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=48), nullable=False),
        sa.Column("target", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=48), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "firmwares",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("device_type", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("checksum", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("required", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("info", sa.Text(), nullable=False),
        sa.Column("uploaded_at", sa.Double(), nullable=False),
        sa.Column("uploaded_by", sa.String(length=64), nullable=False),
        sa.Column("promoted_at", sa.Double(), nullable=True),
        sa.Column("deprecated_at", sa.Double(), nullable=True),
        sa.Column("damaged_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_firmwares")),
        sa.UniqueConstraint(
            "device_type", "version", name=op.f("uq_firmwares_device_type_version")
        ),
    )
    op.create_table(
        "journal",
        sa.Column("beacon_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=16), nullable=False),
        sa.Column("utc", sa.Double(), nullable=False),
        sa.Column("stage", sa.String(length=24), nullable=False),
        sa.Column("code", sa.String(length=24), nullable=False),
        sa.Column("detail", sa.String(length=200), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("beacon_id", "seq", "digest", name=op.f("pk_journal")),
    )
    op.create_table(
        "reports",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("beacon_id", sa.String(length=64), nullable=False),
        sa.Column("attempt_id", sa.String(length=24), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reports")),
    )
    with op.batch_alter_table("reports", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_reports_beacon_id_id"), ["beacon_id", "id"], unique=False
        )

    op.create_table(
        "settings",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_settings")),
    )
    op.create_table(
        "sites",
        sa.Column("path", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=True),
        sa.Column("tz", sa.String(length=64), nullable=True),
        sa.Column("window", sa.String(length=16), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_sites")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_tokens_digest")),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=64), nullable=False),
        sa.Column("kinds", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("delivered", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.Double(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_table(
        "beacons",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("next_key", sa.LargeBinary(length=32), nullable=True),
        sa.Column("device_type", sa.String(length=64), nullable=False),
        sa.Column("site", sa.String(length=256), nullable=True),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=True),
        sa.Column("image", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("first_seen", sa.Double(), nullable=True),
        sa.Column("last_seen", sa.Double(), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("quarantined_at", sa.Double(), nullable=True),
        sa.Column("quarantine_reason", sa.Text(), nullable=True),
        sa.Column("cleared_at", sa.Double(), nullable=False),
        sa.Column("reset_cause", sa.Integer(), nullable=True),
        sa.Column("heap_free_min", sa.Integer(), nullable=True),
        sa.Column("clock_unset", sa.Boolean(), nullable=False),
        sa.Column("insecure", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["site"], ["sites.path"], name=op.f("fk_beacons_site"), onupdate="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_beacons")),
    )
    with op.batch_alter_table("beacons", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_beacons_device_type_version"), ["device_type", "version"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_beacons_site"), ["site"], unique=False)

    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("firmware_id", sa.String(length=24), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["firmware_id"], ["firmwares.id"], name=op.f("fk_rollouts_firmware_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("beacon_id", sa.String(length=64), nullable=False),
        sa.Column("firmware_id", sa.String(length=24), nullable=False),
        sa.Column("rollout_id", sa.String(length=24), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("site", sa.String(length=256), nullable=True),
        sa.Column("from_version", sa.String(length=64), nullable=True),
        sa.Column("from_image", sa.String(length=64), nullable=True),
        sa.Column("offered_at", sa.Double(), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=True),
        sa.Column("rebooting_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("result", sa.String(length=16), nullable=True),
        sa.Column("failed_in", sa.String(length=24), nullable=True),
        sa.Column("code", sa.String(length=24), nullable=True),
        sa.Column("detail", sa.String(length=200), nullable=True),
        sa.Column("late_result", sa.String(length=16), nullable=True),
        sa.Column("late_at", sa.Double(), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("trials", sa.Integer(), nullable=True),
        sa.Column("reset_cause", sa.Integer(), nullable=True),
        sa.Column("heap_free_min", sa.Integer(), nullable=True),
        sa.Column("advertising_paused_ms", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["firmware_id"], ["firmwares.id"], name=op.f("fk_attempts_firmware_id")
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_attempts_rollout_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint(
            "rollout_id", "beacon_id", "n", name=op.f("uq_attempts_rollout_id_beacon_id_n")
        ),
    )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_attempts_beacon_id_offered_at"),
            ["beacon_id", "offered_at"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_attempts_firmware_id_result"), ["firmware_id", "result"], unique=False
        )

    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("rollout_id", sa.String(length=24), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=True),
        sa.Column("stage", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_transitions_rollout_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transitions")),
    )
    with op.batch_alter_table("transitions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_transitions_rollout_id_id"), ["rollout_id", "id"], unique=False
        )


def downgrade() -> None:
    with op.batch_alter_table("transitions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_transitions_rollout_id_id"))

    op.drop_table("transitions")
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_attempts_firmware_id_result"))
        batch_op.drop_index(batch_op.f("ix_attempts_beacon_id_offered_at"))

    op.drop_table("attempts")
    op.drop_table("rollouts")
    with op.batch_alter_table("beacons", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_beacons_site"))
        batch_op.drop_index(batch_op.f("ix_beacons_device_type_version"))

    op.drop_table("beacons")
    op.drop_table("webhooks")
    op.drop_table("tokens")
    op.drop_table("sites")
    op.drop_table("settings")
    with op.batch_alter_table("reports", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_reports_beacon_id_id"))

    op.drop_table("reports")
    op.drop_table("journal")
    op.drop_table("firmwares")
    op.drop_table("events")
    op.drop_table("audit")
