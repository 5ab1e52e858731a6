"""Every bound of the orchestrator in one place; contracts.md names those that others see."""

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is read, held and waited for. Sizes in bytes, times in seconds."""

    status_body: int = 8 * KIB  # a beacon's report
    admin_body: int = 256 * KIB  # JSON bodies of the API
    upload_image: int = 2 * KIB * KIB  # a release image; equal to it is already too large
    upload_field: int = 64 * KIB  # any other field of the upload, the manifest included
    upload_parts: int = 16
    body_stall: float = 20.0  # between two pieces of a request body
    send_stall: float = 60.0  # a reader of a download that takes nothing
    chunk: int = 256 * KIB  # of a download, sent by reference
    blob_cache: int = 8 * KIB * KIB  # images kept in memory, least recently used go first
    nonces: int = 128  # remembered per beacon; of older ones, when they were signed
    given_keys: int = 15  # that a beacon may have been given, beside the one it last used
    journal_entries: int = 8  # in one report
    journal_rows: int = 256  # kept per beacon
    report_rows: int = 64  # kept per beacon
    event_rows: int = 50_000
    page: int = 1000  # rows of a listing
    rollouts: int = 500  # of a device type that are not over: what memory and polls are built for
    completed_rollouts: int = 3  # for the same beacons; the older ones have nobody left to serve
    subscribers: int = 64  # live followers of events
    refusals: int = 30  # failed authentications per address and minute before 429
    webhook_pending: int = 1000  # deliveries that wait, per webhook
    webhook_rows: int = 500  # deliveries that are over, kept per webhook
    previews: int = 4  # of rollouts, computed or waited for at a time
    preview_s: float = 20.0  # of computing one
    write_batch: int = 512  # changes in one transaction
    aside: int = 100  # pages, or readings of the metrics, that are made or wait to be
    worker_silence: float = 60.0  # of a worker's event loop, before it is killed and replaced
    worker_stop: float = 20.0  # between telling a worker to stop and killing it


LIMITS = Limits()
