"""What an update costs a beacon: everything, the app alone, a hotfix.

    full      another core, a blank slot, no block index
    app       the core is there, no block index: an orchestrator before adaptive updates
    hotfix    a line more in one module, built --like the release that runs, with its block index

A virtual beacon with the real app and a core of the stock one's size takes each of them, signed,
over real HTTP. Bytes and sectors are what it reports. Seconds are those from its first request for
the release to its report that it reboots, on this machine, and what erasing and programming takes
on a chip besides (virtual flash adds up the times, and does not wait).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from beacon_ota.images import app_folder, blocks, boards, release, synthetic
from beacon_ota.paths import data_path
from beacon_ota.trust import KeySet
from tests.firmware.beacons import bench
from tests.firmware.server import Server
from tests.firmware.test_update_signed import sign
from tests.trust.lab import Key

CORE_SIZE = 1_662_976  # bytes: 406 sectors, as of MicroPython 1.27
KINDS = ("full", "app", "hotfix")
EDITED = "net/dns.py", "ota/schedule.py"  # a line is added to the one, then to the other
_POLICY = {"stall_s": 60, "give_up_s": 600}


@dataclass(frozen=True)
class UpdateMeasure:
    """What one update took.

    Attributes:
        kind: ``full``, ``app`` or ``hotfix``.
        fetched: bytes of image and block index.
        erased: sectors.
        seconds: from the verified manifest to the reboot.
        size: bytes of the release.
    """

    kind: str
    fetched: int
    erased: int
    seconds: float
    size: int


def _build(core: bytes, version: str, keys: bytes, edits: int, like: bytes | None) -> bytes:
    texts = app_folder.read_sources(data_path("firmware", "app"))
    for path in EDITED[:edits]:
        texts[path] += b"\n\ndef _bench():\n    return 1\n"
    return release.build_release(core, texts, version, "esp32c3", keys=keys, like=like)


def measure_updates(kinds: Sequence[str] = KINDS) -> Iterator[UpdateMeasure]:
    """Yield what each kind of update took: seconds for each."""
    key = Key("release")
    keys = KeySet.of([key.public]).to_json()
    core = synthetic.app_image(CORE_SIZE)
    first = _build(core, "1.0.0", keys, 0, None)
    second = _build(core, "1.1.0", keys, 1, first)
    other = _build(synthetic.app_image(CORE_SIZE, seed="another"), "1.0.0", keys, 0, None)
    # running, in the other slot, new, with a block index
    cases = {
        "full": (other, b"", _build(core, "1.1.1", keys, 2, None), False),
        "app": (second, first, _build(core, "1.1.1", keys, 2, None), False),
        "hotfix": (second, first, _build(core, "1.1.1", keys, 2, second), True),
    }
    for kind in kinds:
        yield _measure(kind, key, *cases[kind])


def _seconds_between(server: Server) -> float:
    """Return the time from the first request for the release to the report before the reboot."""
    begun = ended = 0.0
    for request in server.requests:
        if not begun and request.path.endswith(("/blocks", "/download")):
            begun = request.at
        elif b'"rebooting"' in request.body:
            ended = ended or request.at
    return ended - begun


def _measure(
    kind: str, key: Key, running: bytes, held: bytes, new: bytes, indexed: bool
) -> UpdateMeasure:
    slot = boards.load_board("esp32c3").slots[1].offset
    with bench(running, policy=_POLICY, scale=1, power=False) as b:
        b.beacon.flash.overwrite(slot, held)
        if indexed:
            b.server.blocks = blocks.hash_sectors(new)
        b.server.version = release.parse_release(new).info.version
        sign(b, new, key)
        b.beacon.power_on()
        b.reported("downloading")
        busy = b.beacon.flash.busy
        done = b.reported("rebooting")
        took = _seconds_between(b.server) + b.beacon.flash.busy - busy
    return UpdateMeasure(
        kind, done["bytes_fetched"], done["sectors_written"], round(took, 2), len(new)
    )
