"""The operator's choices for one orchestrator, as they are when it starts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beacon_ota.orchestrator.lease import DAY_S


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator chose when starting.

    Attributes:
        poll_s: the ordinary pause between two polls of a beacon.
        insecure: releases without a signed manifest are accepted.
        trusted: parsed trusted keys, None when there are none.
        zone, window: for beacons whose site says nothing.
        upstream: URL of the primary that this is a mirror of; with its token and certificate.
        lease_s: for how long a mirror that is cut off hands releases out.
        images: folder or URL of an object store; None: below ``data``.
        webhook_local: webhooks may go to this machine itself.
    """

    data: Path
    poll_s: float = 60.0
    insecure: bool = False
    trusted: Any = None
    zone: str = "UTC"
    window: str = "03:00-05:00"
    database: str | None = field(default=None, repr=False)  # may hold a password
    images: str | None = None
    workers: int = 1
    upstream: str | None = None
    upstream_token: str = field(default="", repr=False)
    upstream_ca: Path | None = None
    lease_s: float = DAY_S
    webhook_local: bool = False
