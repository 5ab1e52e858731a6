"""One beacon, its network and its orchestrator."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.orchestrator import InProcessOrchestrator, empty_database
from beacon_ota.errors import ReachError
from beacon_ota.images import boards, otadata
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import AccessPoint, Network

LATEST = "/firmwares/latest/"
SCALE = 50.0
MEMORY_DISK = Path("/dev/shm")  # a disk in memory, where there is one


@dataclass
class Rig:
    """What a case works with."""

    flash: Flash
    beacon: VirtualBeacon
    network: Network
    access_point: AccessPoint
    orchestrator: InProcessOrchestrator

    def wait_for(self, condition: Callable[[], object], timeout: float, what: str) -> bool:
        """Wait for the beacon or the orchestrator; False when it did not come in real seconds."""
        try:
            self.beacon.wait_for(condition, timeout, what)
        except ReachError:
            return False
        return True

    def attempt_over(self, firmware_id: str) -> bool:
        """Has the beacon asked for work, and does nobody wait for the end of an attempt?"""
        requests = self.orchestrator.http_server.requests
        return (
            any(r.path.startswith(LATEST) and "state=valid" in r.target for r in requests)
            and self.nothing_to_report
            and any(row["result"] for row in self.orchestrator.attempt_rows(firmware_id))
        )

    def is_confirmed(self, slot: int) -> bool:
        """Do the bootloader's entries say that the release in a slot is confirmed?"""
        place = boards.load_board(builds.DEVICE).otadata.offset
        entries = otadata.parse_entries(self.flash.read(place, otadata.SIZE))
        active = otadata.active_entry(entries)
        return (
            active >= 0
            and entries[active].slot(2) == slot
            and entries[active].state == otadata.VALID
        )

    @property
    def nothing_to_report(self) -> bool:
        """Has the beacon nothing more to say of any attempt?"""
        return self.beacon.setting("attempt") is None


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a folder for one case, in memory where possible; it is gone afterwards."""
    if parent is None and MEMORY_DISK.is_dir():
        parent = MEMORY_DISK
    with tempfile.TemporaryDirectory(prefix="beacon-campaign-", dir=parent) as folder:
        yield Path(folder)


@contextlib.contextmanager
def set_up_rig(
    content: bytes,
    folder: Path,
    *,
    database: bytes | None = None,
    now: float | None = None,
    scale: float = SCALE,
    record: bool = False,
    **options,
) -> Iterator[Rig]:
    """Set up a beacon with this flash content, without power, and its orchestrator.

    Args:
        folder: of the orchestrator's data.
        database: what it knows already; nothing when absent.
        now: the time that its clock goes on from, UTC seconds.
        scale: how much faster both run than real time.
        record: keep the flash operations.
        options: further arguments of the virtual beacon.
    """
    with contextlib.ExitStack() as stack:
        orchestrator = stack.enter_context(InProcessOrchestrator(folder, scale))
        orchestrator.open(empty_database() if database is None else database, now)
        network = Network(join_time=0.5)
        point = network.add_access_point(builds.SSID, builds.PASSWORD)
        network.set_host("orchestrator.local", "127.0.0.1", orchestrator.http_server.port)
        flash = Flash(content, record=record)
        stack.callback(flash.close)
        beacon = stack.enter_context(VirtualBeacon(flash, network=network, scale=scale, **options))
        yield Rig(flash, beacon, network, point, orchestrator)
