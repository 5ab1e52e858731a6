"""Every bound of the orchestrator in one place; contracts.md names those that others see.

docs/limits.md has them as a table with their reasons; a test compares it with this file.
"""

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is read, held and waited for. Sizes in bytes, times in seconds."""

    status_body: int = 8 * KIB  # a beacon's report
    admin_body: int = 256 * KIB  # JSON bodies of the API
    upload_image: int = 2 * KIB * KIB  # exclusive upper bound of a release image
    upload_field: int = 64 * KIB  # any other field of the upload, the manifest included
    upload_parts: int = 16
    head: int = 32 * KIB  # a request line and its headers
    head_fields: int = 128  # headers of a request
    head_time: float = 20.0  # until a head is complete; also for a connection that says nothing
    body_overhead: int = 32 * KIB  # chunk extensions and trailers, beyond eight times the body
    body_unread: int = 8 * KIB * KIB  # rest of a body that was refused already, then it is cut off
    parsed_ahead: int = 1 * KIB  # of what a peer sends before it has its answer
    body_stall: float = 20.0  # between two pieces of a request body
    send_stall: float = 60.0  # a reader of a download that takes nothing
    keep_alive: float = 75.0  # a connection without a request
    handshake: float = 10.0  # TLS
    connections: int = 16384  # open at once, per process; fewer where fewer files may be open
    connections_reserved: int = 64  # of them, those that beacons cannot take
    connections_unproven: int = 1024  # that have not shown a right token, session or signature
    connections_unproven_per_address: int = 128  # IPv6: per /64
    backlog: int = 2048  # connections that the kernel holds until they are accepted
    own_files: int = 64  # open files kept for the database, images, webhooks
    chunk: int = 256 * KIB  # of a download, sent by reference
    blob_cache: int = 8 * KIB * KIB  # images kept in memory, least recently used go first
    block_indexes: int = 512  # files of block indexes that are kept, 4 KiB each
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
    subscribers_per_token: int = 16  # those of one token and its sessions
    subscriber_check: float = 3.0  # after which a follower's token or session is looked up again
    subscriber_events: int = 1000  # that a slow follower may lag behind
    refusals: int = 30  # failed authentications per address and minute before 429
    refused_addresses: int = 4096  # whose failures are counted
    webhook_pending: int = 1000  # deliveries that wait, per webhook
    webhook_rows: int = 500  # deliveries that are over, kept per webhook
    previews: int = 4  # of rollouts, computed or waited for at a time
    preview_s: float = 20.0  # of computing one
    write_batch: int = 512  # changes in one transaction
    background_jobs: int = 100  # pages, or readings of the metrics, that are made or wait to be
    stop_patience: float = 3.0  # for the database to take a stop, before its answer says it has not
    worker_silence: float = 60.0  # of a worker's event loop, before it is killed and replaced
    worker_stop: float = 20.0  # between telling a worker to stop and killing it


LIMITS = Limits()
