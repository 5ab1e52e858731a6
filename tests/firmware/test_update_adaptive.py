"""Updates that fetch and write only what is not in flash already, and what they do when something
that is there is not what it seems to be: one whole download, in the same attempt."""

import hashlib
from typing import Any

import pytest

from beacon_ota import paths
from beacon_ota.images import boards, synthetic
from beacon_ota.trust import KeySet
from tests.firmware.beacons import bench, make
from tests.firmware.server import STRANGERS, Fault
from tests.firmware.test_update_signed import FLEET, sign
from tests.trust.lab import Key

SECTOR = 4096
BOARD = boards.load_board("esp32c3")
OTA_0, OTA_1 = (slot.offset for slot in BOARD.slots)
NOTE = b"hotfix "


@pytest.fixture(scope="module")
def key() -> Key:
    return Key("release")


@pytest.fixture(scope="module")
def trusted(key) -> bytes:
    return KeySet.of([key.public]).to_json()


@pytest.fixture(scope="module")
def other_core() -> bytes:
    return synthetic.app_image(40 * 1024, version="another core")


@pytest.fixture(scope="module")
def old(small_core, trusted) -> bytes:
    return make(small_core, "1.0.0", keys=trusted, insecure=False)


@pytest.fixture(scope="module")
def new(small_core, trusted) -> bytes:
    return make(small_core, "2.0.0", keys=trusted, insecure=False)


def differing(data: bytes, *others: bytes) -> list[int]:
    """The sectors of a release that are in none of the others at the same place."""
    return [
        at // SECTOR
        for at in range(0, len(data), SECTOR)
        if all(data[at : at + SECTOR] != other[at : at + SECTOR] for other in others)
    ]


def runs(data: bytes, *others: bytes) -> list[str]:
    """What is asked for in place of the sectors that differ, one range a run."""
    found: list[list[int]] = []
    for sector in differing(data, *others):
        if found and found[-1][1] == sector:
            found[-1][1] += 1
        else:
            found.append([sector, sector + 1])
    return [
        f"bytes={first * SECTOR}-" + (str(stop * SECTOR - 1) if stop * SECTOR < len(data) else "")
        for first, stop in found
    ]


BLANK = b"\xff" * (1 << 20)


def kept_and_written(data: bytes, before: bytes) -> tuple[int, int]:
    """How many sectors are kept and written where a slot held ``before``; the first is written."""
    written = len({0, *differing(data, before)})
    return len(data) // SECTOR - written, written


def bytes_of(data: bytes, *others: bytes) -> int:
    return SECTOR * len(differing(data, *others))


def put(b, offset: int, data: bytes) -> None:
    """Have flash hold something, before the beacon is powered on."""
    b.beacon.flash.overwrite(offset, data)


def cost(doc: dict) -> tuple[int, int, int]:
    return doc["bytes_fetched"], doc["sectors_kept"], doc["sectors_written"]


def adapted(b, code: str = "") -> bool:
    """Did the journal tell of an adaptation that failed?"""
    return any(entry[2] == "adapt" and code in ("", entry[3]) for entry in b.server.journal())


def in_slot(b, data: bytes, offset: int = OTA_1) -> bool:
    return b.beacon.flash.read(offset, len(data)) == data


CORE = 16 * 1024  # of small_core


# -- without an index: the core


@pytest.mark.parametrize("knows", [True, False], ids=["no index", "no such route"])
def test_a_core_that_is_the_same_is_taken_from_the_running_slot(old, new, key, knows):
    with bench(old) as b:
        b.server.knows_blocks = knows
        sign(b, new, key)
        done = b.reported("success")
        assert b.server.ranges() == [f"bytes={CORE}-"]
        assert cost(done) == (len(new) - CORE, *kept_and_written(new, BLANK))
        assert done["bytes"] == len(new) and in_slot(b, new) and not adapted(b)
        assert b.server.attempts == 1 and b.running() == "ota_1"


def test_what_the_slot_holds_is_not_written_again(old, new, key):
    """The core is there, and so are sectors of the app: fetched, found equal, and kept."""
    before = bytearray(old)
    before[SECTOR + 9] ^= 1  # but this sector of the core
    with bench(old, power=False) as b:
        put(b, OTA_1, bytes(before))
        sign(b, new, key)
        b.beacon.power_on()
        done = b.reported("success")
        assert cost(done) == (len(new) - CORE, *kept_and_written(new, bytes(before)))
        assert in_slot(b, new)


def test_another_core_is_downloaded(old, trusted, key, other_core):
    new = make(other_core, "2.0.0", keys=trusted, insecure=False)
    with bench(old) as b:
        sign(b, new, key)
        done = b.reported("success")
        assert b.server.ranges() == [""] and done["bytes_fetched"] == len(new)


@pytest.mark.parametrize("filler", [0, 9 * SECTOR], ids=["shrinks", "grows"])
def test_an_app_that_changes_its_length(small_core, trusted, key, filler):
    old = make(small_core, "1.0.0", keys=trusted, insecure=False, filler=5 * SECTOR)
    new = make(small_core, "2.0.0", keys=trusted, insecure=False, filler=filler)
    assert len(new) != len(old)
    with bench(old, power=False) as b:
        put(b, OTA_1, old)
        sign(b, new, key)
        b.beacon.power_on()
        b.reported("success")
        assert in_slot(b, new) and b.server.ranges() == [f"bytes={CORE}-"]


def test_from_a_factory_app_and_back_and_forth(small_core, trusted, key):
    board = boards.load_board("esp32c3-8mb")
    images = [
        make(small_core, f"{n}.0.0", keys=trusted, insecure=False, device_type="esp32c3-8mb")
        for n in range(1, 5)
    ]
    with bench(images[0], board="esp32c3-8mb") as b:
        for n, data in enumerate(images[1:], 2):
            b.server.version = f"{n}.0.0"
            sign(b, data, key)
            b.wait(lambda n=n: b.polled(f"{n}.0.0"))
        assert [slot for slot, _ in b.causes()] == ["factory", "ota_0", "ota_1", "ota_0"]
        assert b.server.ranges() == [f"bytes={CORE}-"] * 3
        done = [r for r in b.server.reports if r["update_status"] == "success"]
        assert [r["sectors_kept"] > 2 for r in done] == [False, False, True]
        assert in_slot(b, images[3], board.slots[0].offset)


# -- with an index


def test_an_index_fetches_what_differs(old, new, key):
    with bench(old) as b:
        sign(b, new, key)
        b.server.blocks = b.server.index
        done = b.reported("success")
        assert b.server.ranges() == runs(new, old)
        fetched = bytes_of(new, old) + len(b.server.index)
        assert cost(done) == (fetched, *kept_and_written(new, BLANK))
        assert in_slot(b, new) and not adapted(b)


def test_an_index_finds_what_either_slot_holds(small_core, trusted, key, old, new):
    """The slot holds the release before; what neither has is fetched, what it has is kept."""
    before = make(small_core, "0.9.0", keys=trusted, insecure=False, extra={"odd": b"x" * 9000})
    with bench(old, power=False) as b:
        put(b, OTA_1, before)
        sign(b, new, key)
        b.server.blocks = b.server.index
        b.beacon.power_on()
        done = b.reported("success")
        assert b.server.ranges() == runs(new, old, before)
        fetched = bytes_of(new, old, before) + len(b.server.index)
        assert cost(done) == (fetched, *kept_and_written(new, before))


def test_an_index_serves_a_fleet_without_signatures(v1, v2):
    with bench(v1) as b:
        b.server.image, b.server.offering = v2, True
        b.server.blocks = b.server.index
        b.reported("success")
        assert b.server.ranges() == runs(v2, v1) and in_slot(b, v2)


def test_an_index_serves_another_core(old, trusted, key, other_core):
    """What of the app lies at the same place is not fetched again."""
    new = make(other_core, "2.0.0", keys=trusted, insecure=False)
    with bench(old, power=False) as b:
        put(b, OTA_1, make(other_core, "0.9.0", keys=trusted, insecure=False))
        sign(b, new, key)
        b.server.blocks = b.server.index
        b.beacon.power_on()
        done = b.reported("success")
        assert done["bytes_fetched"] < len(new) // 2 and in_slot(b, new)


@pytest.mark.parametrize("index", [True, False])
def test_an_encrypted_release(old, new, key, index):
    """Kept sectors are plain on both sides. The first comes in any case: it tells a wrong key."""
    with bench(old, settings={"fleet_key": FLEET}) as b:
        sign(b, new, key, fleet=FLEET)
        b.server.blocks = b.server.index if index else None
        b.reported("success")
        later = runs(new, old) if index else [f"bytes={CORE}-"]
        assert b.server.ranges() == ["bytes=0-4095", *later]
        assert in_slot(b, new) and not adapted(b)


def test_the_wrong_key_is_noticed_before_anything_is_written(old, new, key):
    with bench(old, power=False, settings={"fleet_key": bytes(16)}) as b:
        put(b, OTA_1, old)
        sign(b, new, key, fleet=FLEET)
        b.server.blocks = b.server.index
        b.beacon.power_on()
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("verify", "decrypt")
        assert in_slot(b, old), "the release before may be needed"


def test_the_same_release_again_is_fetched_no_more(old, new, key):
    """It is all there, but was not armed: nothing but its first sector is written."""
    with bench(old, power=False) as b:
        put(b, OTA_1, new)
        sign(b, new, key)
        b.server.blocks = b.server.index
        b.beacon.power_on()
        done = b.reported("success")
        assert b.server.ranges() == []
        assert cost(done) == (len(b.server.index), len(new) // SECTOR - 1, 1)


# -- resuming


@pytest.mark.parametrize("index", [True, False])
def test_a_power_cut_costs_what_was_not_written(old, new, key, index):
    """The next attempt keeps what the first has written."""
    with bench(old, scale=20) as b:
        b.wait(lambda: b.polled("1.0.0"))
        sign(b, new, key)
        b.server.blocks = b.server.index if index else None
        sector = len(new) // SECTOR // 2
        b.beacon.flash.cut = _cut_when_written(b, OTA_1 + sector * SECTOR)
        b.wait(lambda: not b.beacon.powered)
        before = len(b.server.ranges())
        held = b.beacon.flash.read(OTA_1, len(new))
        b.beacon.power_on()
        done = b.reported("success")
        assert [r["code"] for r in b.server.reports if r["update_status"] == "failed"] == ["power"]
        missing = differing(new, held)
        assert sector // 2 < len(new) // SECTOR - len(missing)
        written = {0, *missing}
        assert done["sectors_written"] <= len(written) and in_slot(b, new)
        if index:
            assert b.server.ranges()[before:] == runs(new, held, old)
        assert not adapted(b)


def _cut_when_written(b, address: int) -> Any:
    """Cut the power when a sector has been written."""

    class Cut:
        def __init__(self):
            self.seed, self.when = 0, "after"

        @property
        def number(self) -> int:
            flash = b.beacon.flash
            return flash.ops if flash.read(address, 16) != b"\xff" * 16 else -1

    return Cut()


def test_runs_are_resumed(small_core, trusted, key):
    old = make(small_core, "1.0.0", keys=trusted, insecure=False)
    new = make(small_core, "2.0.0", keys=trusted, insecure=False, filler=60_000)
    with bench(old) as b:
        b.server.downloads = [Fault(close=10_000), Fault(stall=5_000)]
        sign(b, new, key)
        b.reported("success")
        assert b.server.ranges() == [
            f"bytes={CORE}-",
            f"bytes={CORE + 2 * SECTOR}-",
            f"bytes={CORE + 3 * SECTOR}-",
        ]


# -- what is not as it seems


def fallen_back(b, new: bytes, code: str) -> dict:
    """Wait for the end of an attempt in which the adaptation failed."""
    done = b.reported("success")
    assert b.server.attempts == 1 and "failed" not in b.server.statuses()
    assert b.server.ranges()[-1] == "", "all of it"
    assert done["bytes_fetched"] >= len(new) and done["bytes"] == len(new)
    assert in_slot(b, new)
    b.wait(lambda: adapted(b, code), what="the journal")
    return done


def test_an_index_that_lies(old, new, key):
    """Sealed, and of the right length: the hash of the slot finds it out."""
    with bench(old) as b:
        sign(b, new, key)
        b.server.blocks = b"".join(
            hashlib.sha256(old[at : at + SECTOR]).digest()[:8] for at in range(0, len(new), SECTOR)
        )
        fallen_back(b, new, "checksum")


@pytest.mark.parametrize("change", [lambda i: i[:-1], lambda i: i + bytes(8), lambda i: b""])
def test_an_index_of_the_wrong_length(old, new, key, change):
    """Of another release, perhaps: the update goes on without it."""
    with bench(old) as b:
        sign(b, new, key)
        b.server.blocks = change(b.server.index)
        b.reported("success")
        assert b.server.ranges() == [f"bytes={CORE}-"]
        b.wait(lambda: adapted(b, "index"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=403),
        Fault(status=409),
        Fault(silent=True),
        Fault(raw=b"garbage\r\n\r\n"),
        Fault(raw=b""),
        Fault(mac="00" * 32),
        Fault(close=20),
        Fault(stall=20),
        Fault(length=5),
        Fault(chunked=True, close=20),
    ],
    ids=lambda fault: str(fault)[:60],
)
def test_an_index_that_does_not_come(old, new, key, fault):
    with bench(old, scale=20) as b:
        b.server.indexes = [fault]
        sign(b, new, key)
        b.server.blocks = b.server.index
        b.reported("success")
        assert b.server.ranges() == [f"bytes={CORE}-"] and b.server.attempts == 1
        b.wait(lambda: adapted(b, "index"))


@pytest.mark.parametrize("fault", [Fault(chunked=True), Fault(length=None), Fault(length=4097)])
def test_an_index_from_a_server_that_is_only_different(old, new, key, fault):
    with bench(old) as b:
        b.server.indexes = [fault]
        sign(b, new, key)
        b.server.blocks = b.server.index
        b.reported("success")
        assert b.server.ranges() == runs(new, old) and not adapted(b)


@pytest.mark.parametrize("who", ["200", "404", "409", "garbage", "short"])
def test_a_stranger_has_no_index(old, new, key, who):
    with bench(old) as b:
        b.server.stranger = lambda r: STRANGERS[who] if r.path.endswith("/blocks") else None
        sign(b, new, key)
        b.server.blocks = b.server.index
        b.reported("success")
        assert b.server.ranges() == [f"bytes={CORE}-"] and b.server.attempts == 1


def test_an_index_of_a_large_release_is_not_asked_for(small_core, trusted, key):
    """The heap has room for 512 sectors' hashes; the boards here have no larger slots."""
    old = make(small_core, "1.0.0", keys=trusted, insecure=False)
    new = make(small_core, "2.0.0", keys=trusted, insecure=False)
    with bench(old) as b:
        sign(b, new, key)
        b.server.extra = {"size": 3 << 20}
        b.reported("failed")
        assert not [r for r in b.server.requests if r.path.endswith("/blocks")]


@pytest.mark.parametrize("index", [True, False])
def test_a_server_that_answers_a_range_with_everything(old, new, key, index):
    with bench(old) as b:
        b.server.downloads = [Fault(ignore_range=True)] * 9
        sign(b, new, key)
        b.server.blocks = b.server.index if index else None
        done = b.reported("success")
        assert len(b.server.ranges()) == 1 and in_slot(b, new)
        assert done["bytes_fetched"] >= len(new)
        b.wait(lambda: adapted(b, "http"))


@pytest.mark.parametrize("fault", [Fault(status=416), Fault(content_range="bytes 0-1/2")])
def test_a_server_that_does_not_do_ranges_is_asked_for_everything(old, new, key, fault):
    with bench(old) as b:
        b.server.downloads = [fault]
        sign(b, new, key)
        fallen_back(b, new, "http")


def test_a_range_of_another_part(old, new, key):
    """The right length, and the bytes of another place: what was written does not hash."""
    with bench(old) as b:
        b.server.downloads = [Fault(body=new[:CORE] + new[CORE:][::-1])]
        sign(b, new, key)
        fallen_back(b, new, "checksum")


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("slot", [OTA_0, OTA_1], ids=["running", "target"])
def test_a_bit_of_the_core_that_flipped(old, new, key, slot, index):
    """In the running slot, where it is not executed: what was copied of it does not hash, or the
    index finds it out. In the other slot: it is written anew."""
    with bench(old, power=False) as b:
        put(b, OTA_1, old)
        sign(b, new, key)
        b.server.blocks = b.server.index if index else None
        b.server.offering = False
        b.beacon.power_on()
        b.wait(lambda: b.polled("1.0.0"))
        at = slot + 2 * SECTOR + 77
        b.beacon.flash.overwrite(at, bytes([b.beacon.flash.read(at, 1)[0] ^ 4]))
        b.server.offering = True
        if index or slot == OTA_1:
            done = b.reported("success")
            assert in_slot(b, new) and not adapted(b)
            assert done["bytes_fetched"] < len(new)
        else:
            fallen_back(b, new, "checksum")


# -- what it costs


def erased(b) -> int:
    """Sectors erased in the second slot so far."""
    first, last = OTA_1 // SECTOR, OTA_1 // SECTOR + BOARD.slots[1].size // SECTOR
    return sum(count for sector, count in b.beacon.flash.wear.items() if first <= sector < last)


LINE = (paths.data_path("firmware", "app") / "ota" / "schedule.py").read_text() + "\nADDED = 5\n"


@pytest.mark.parametrize(
    ("changes", "extra", "index", "fetched", "sectors"),
    [
        ({"ota/schedule.py": LINE}, {}, True, 24, 6),
        ({}, {"data": bytes(range(256)) * 64}, True, 120, 30),
        ({}, {}, False, 128, 6),
    ],
    ids=["one line", "an app", "without an index"],
)
def test_what_an_update_costs(small_core, trusted, key, changes, extra, index, fetched, sectors):
    """KB that are fetched, and sectors that are erased, where both slots hold the core."""
    old, new = (
        make(
            small_core,
            version,
            changes if version == "2.0.0" else None,
            keys=trusted,
            insecure=False,
            extra=extra if version == "2.0.0" else None,
        )
        for version in ("1.0.0", "2.0.0")
    )
    before = make(small_core, "0.9.0", keys=trusted, insecure=False)
    with bench(old, power=False) as b:
        put(b, OTA_1, before)
        sign(b, new, key)
        b.server.blocks = b.server.index if index else None
        begun = erased(b)
        b.beacon.power_on()
        done = b.reported("success")
        assert done["bytes_fetched"] <= fetched * 1024
        assert erased(b) - begun <= sectors
        assert done["sectors_written"] < sectors
