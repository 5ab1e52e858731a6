"""The tables. Times are UTC seconds (double); identifiers that we make are 24 hex characters.

No column is a counter: every number that is shown is computed from rows.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

# SQLite counts rows with no other type, and needs none: its integers have 64 bits anyway.
_Serial = BigInteger().with_variant(Integer, "sqlite")

firmwares = Table(
    "firmwares",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("device_type", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("checksum", String(64), nullable=False),  # of the plain image
    Column("size", Integer, nullable=False),
    Column("blob", String(64), nullable=False),  # SHA-256 of the bytes stored and served
    Column("description", Text, nullable=False, default=""),
    Column("required", Boolean, nullable=False, default=False),
    Column("state", String(16), nullable=False),  # testing, stable, deprecated
    Column("manifest", Text),  # DSSE envelope, null when the fleet runs unsigned
    Column("expires_at", Double),  # of the manifest
    Column("blocks", Text),  # base64: block index that came with an encrypted image
    Column("info", Text, nullable=False, default="{}"),  # JSON: what the checks read in the image
    Column("uploaded_at", Double, nullable=False),
    Column("uploaded_by", String(64), nullable=False),
    Column("promoted_at", Double),
    Column("deprecated_at", Double),
    Column("damaged_at", Double),  # the stored bytes no longer match: withdrawn
    UniqueConstraint("device_type", "version"),
)

sites = Table(
    "sites",
    metadata,
    Column("path", String(256), primary_key=True),  # "hq/a/2": site, building, floor
    Column("name", String(128), nullable=False, default=""),
    Column("kind", String(16)),  # site, building, floor; null: by its depth
    Column("tz", String(64)),  # IANA; null: the parent's
    Column("window", String(16)),  # "03:00-05:00"; null: the parent's
    Column("created_at", Double, nullable=False),
)

beacons = Table(
    "beacons",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", LargeBinary(32), nullable=False),
    Column("next_key", LargeBinary(32)),  # travels as `rekey` until first used
    # Keys given since `key`, 32 bytes each, oldest first: any of them may be the beacon's by now.
    Column("given_keys", LargeBinary),
    Column("device_type", String(64), nullable=False),
    Column("said_type", String(32)),  # what it says it is; null: it has not said
    Column("site", String(256), ForeignKey("sites.path", onupdate="CASCADE")),
    Column("tags", Text, nullable=False, default="[]"),  # JSON list, sorted
    Column("channel", String(16), nullable=False, default="stable"),
    Column("version", String(64)),
    Column("image", String(64)),  # SHA-256 of the release in the running slot
    Column("state", String(16)),  # valid, trial
    Column("created_at", Double, nullable=False),
    Column("first_seen", Double),
    Column("last_seen", Double),
    Column("address", String(64)),
    Column("quarantined_at", Double),
    Column("quarantine_reason", Text),
    Column("cleared_at", Double, nullable=False, default=0.0),  # failures before it are forgiven
    Column("reset_cause", BigInteger),
    Column("heap_free_min", BigInteger),
    Column("clock_unset", Boolean, nullable=False, default=False),
    Column("insecure", Boolean, nullable=False, default=False),
    Column("refused_code", String(32)),  # of its last authenticated request that was refused
    Column("refused_at", Double),
    Column("refusals", Integer),  # since its last poll that was answered
    Index(None, "site"),
    Index(None, "device_type", "version"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("firmware_id", String(24), ForeignKey("firmwares.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("status", String(16), nullable=False),  # rollout.types.Status
    Column("plan", Text, nullable=False),  # JSON, the form people write
    Column("state", Text, nullable=False),  # JSON: the fold of the transitions
    Column("revision", Integer, nullable=False, default=0),  # compare-and-swap of advances
    Column("created_at", Double, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("ended_at", Double),
    Column("reason", Text),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("beacon_id", String(64), nullable=False),
    Column("firmware_id", String(24), ForeignKey("firmwares.id"), nullable=False),
    Column("rollout_id", String(24), ForeignKey("rollouts.id"), nullable=False),
    Column("mirror", String(24)),  # whose it is to settle; null: this orchestrator's own
    Column("wave", Integer, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("n", Integer, nullable=False),  # counts every offer of this rollout to this beacon
    Column("site", String(256)),  # where the beacon was when it was offered
    Column("from_version", String(64)),
    Column("from_image", String(64)),
    Column("offered_at", Double, nullable=False),
    Column("taken_at", Double),
    Column("rebooting_at", Double),
    Column("ended_at", Double),
    Column("result", String(16)),  # rollout.types.Result; set once
    Column("failed_in", String(24)),  # stage and code of the failure, as contracts.md lists them
    Column("code", String(24)),
    Column("detail", String(200)),
    Column("late_result", String(16)),  # what arrived after the beacon had been given up
    Column("late_at", Double),
    Column("blamed_at", Double),  # when the beacon called the release bad
    Column("bytes", BigInteger),
    Column("duration_ms", BigInteger),
    Column("trials", BigInteger),
    Column("reset_cause", BigInteger),
    Column("heap_free_min", BigInteger),
    Column("advertising_paused_ms", BigInteger),
    Column("bytes_fetched", BigInteger),  # of the image and its block index; null: it did not say
    Column("sectors_kept", BigInteger),
    Column("sectors_written", BigInteger),
    UniqueConstraint("rollout_id", "beacon_id", "n"),
    Index(None, "beacon_id", "offered_at"),
    Index(None, "firmware_id", "result"),
)

reports = Table(
    "reports",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("beacon_id", String(64), nullable=False),
    Column("attempt_id", String(24)),
    Column("at", Double, nullable=False),
    Column("status", String(16), nullable=False),
    Column("body", Text, nullable=False),  # the report without its journal
    Index(None, "beacon_id", "id"),
)

journal = Table(
    "journal",
    metadata,
    # A beacon whose storage was wiped counts from 1 again, so seq alone names no entry.
    Column("beacon_id", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(16), primary_key=True),
    Column("utc", Double, nullable=False),
    Column("stage", String(24), nullable=False),
    Column("code", String(24), nullable=False),
    Column("detail", String(200), nullable=False),
    Column("stored_at", Double, nullable=False),
)

transitions = Table(
    "transitions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rollout_id", String(24), ForeignKey("rollouts.id"), nullable=False),
    Column("at", Double, nullable=False),
    Column("kind", String(24), nullable=False),
    Column("wave", Integer),
    Column("stage", Integer),
    Column("reason", Text, nullable=False, default=""),
    Column("detail", Text, nullable=False, default=""),
    Column("actor", String(64), nullable=False),
    Index(None, "rollout_id", "id"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(8), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(48), nullable=False),
    Column("target", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),  # JSON
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("kind", String(48), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("data", Text, nullable=False),  # JSON
    sqlite_autoincrement=True,  # an id is never used twice, so followers can resume from it
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 of what the cookie holds
    Column("token_id", String(8), ForeignKey("tokens.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", String(64), nullable=False),  # signs, so it is kept as it is
    Column("kinds", Text, nullable=False),  # JSON list: event kinds, or their beginnings
    Column("created_at", Double, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("disabled_at", Double),
    Column("seen", Integer, nullable=False),  # id of the last event looked at
    Column("failing_since", Double),
    Column("rests_until", Double),  # nothing is tried before, after a failure
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("webhook_id", String(24), ForeignKey("webhooks.id"), nullable=False),
    Column("event_id", Integer),  # null for a test
    Column("kind", String(48), nullable=False),
    Column("body", Text, nullable=False),  # the JSON that is signed and sent
    Column("created_at", Double, nullable=False),
    Column("state", String(16), nullable=False),  # pending, delivered, given_up
    Column("tries", Integer, nullable=False, default=0),
    Column("next_at", Double),  # null once it is over
    Column("ended_at", Double),
    Column("status", Integer),  # HTTP, of the last try
    Column("error", Text),  # of the last try
    Column("took_ms", Integer),
    UniqueConstraint("webhook_id", "event_id"),
    Index(None, "state", "next_at"),
)

settings = Table(
    "settings",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# What changed, for those who keep a copy: other workers on the same database, or a mirror's
# primary. Written by triggers, in the order of the commits.
changes = Table(
    "changes",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("what", String(16), nullable=False),  # the table
    Column("key", String(256), nullable=False),
    Column("worker", String(24)),  # who did it; null: the command line
    Index(None, "what", "key"),
    sqlite_autoincrement=True,
)

mirrors = Table(
    "mirrors",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("site", String(256), nullable=False),  # it serves what is there and below
    Column("token_id", String(8), ForeignKey("tokens.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("removed_at", Double),
    Column("epoch", String(24)),  # of the mirror's data; another one counts from 1 again
    Column("seq", _Serial, nullable=False, default=0),  # of the last change taken over
    Column("seen_at", Double),
    Column("status", Text, nullable=False, default="{}"),  # JSON: what it says of itself
    Column("even_at", Double),  # when it had last told all that it knew
)

# What a mirror has told from one disk, and up to where. A disk that was copied, or put back from a
# copy, goes on with a book of its own.
mirror_books = Table(
    "mirror_books",
    metadata,
    Column("mirror_id", String(24), ForeignKey("mirrors.id"), primary_key=True),
    Column("epoch", String(24), primary_key=True),
    Column("mark", String(24)),  # of the last exchange that was taken
    Column("seq", BigInteger, nullable=False),
    Column("told_at", Double, nullable=False),
)

# Halts that mirrors made and told: each is done once, whoever tells it again.
mirror_halts = Table(
    "mirror_halts",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("mirror_id", String(24), ForeignKey("mirrors.id"), nullable=False),
    Column("taken_at", Double, nullable=False),
)

# Beacons that have left a mirror's site: what it had heard of them before, it may still tell.
former_beacons = Table(
    "former_beacons",
    metadata,
    Column("mirror_id", String(24), ForeignKey("mirrors.id"), primary_key=True),
    Column("beacon_id", String(64), primary_key=True),
    Column("key_digest", String(64), nullable=False),  # of the key that the mirror has
)
