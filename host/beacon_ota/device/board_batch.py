"""Labels, builds and flashes boards one after the other, as they are plugged in.

A board that fails does not stop the next one. A board that was flashed before is left alone, and
one that was not brought to its end keeps its label: a batch can be broken off at any time.
"""

import fnmatch
import glob
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from beacon_ota.device import chip
from beacon_ota.device.board_log import BEGUN, FLASHED, BoardLog, BoardRow
from beacon_ota.errors import BeaconOtaError
from beacon_ota.provision.labels import Label

ESPRESSIF = 0x303A  # the USB vendor of a chip's own port
LOOK_S = 0.3  # between two looks for new ports
SETTLE_S = 5.0  # after which a port that is there has to be usable
_UNSETTLED = ("port_denied", "port_missing", "port_busy", "port_lost")

ListPorts = Callable[[], Mapping[str, str]]  # port -> address of the chip, "" if USB says none


@dataclass(frozen=True)
class BoardResult:
    """What became of a board on a port. ``row`` is None for one that did not say who it is.

    ``done`` is whether it was flashed now, ``known`` whether it was flashed before.
    """

    port: str
    row: BoardRow | None
    done: bool = False
    known: bool = False
    error: BeaconOtaError | None = None


class BoardBatch:
    """Flashes boards with one release, each with a label of its own.

    Args:
        log: where the labels and results go.
        build: makes the flash image of a label.
        version: of the release, for the log.
        again: also boards that were flashed before, under the label that they have.
        how: options of :func:`beacon_ota.device.chip.write_image`.
        settle_s: seconds in which a new port may still be unusable.
    """

    def __init__(
        self,
        log: BoardLog,
        build: Callable[[Label], bytes],
        version: str,
        *,
        again: bool = False,
        how: Mapping[str, Any] | None = None,
        settle_s: float = SETTLE_S,
    ):
        self._log, self._build, self._version = log, build, version
        self._again, self._how, self._settle_s = again, dict(how or {}), settle_s

    def flash_board(self, port: str, progress: chip.Progress | None = None) -> BoardResult:
        """Label, build and flash the board on a port. Its failure is a result."""
        row = None
        try:
            row = self._log.find_or_label(self._read_address(port))
            if row.result == FLASHED and not self._again:
                return BoardResult(port, row, known=True)
            row = self._write_down(row, BEGUN)
            chip.write_image(port, self._build(row.label), progress=progress, **self._how)
            return BoardResult(port, self._write_down(row, FLASHED), done=True)
        except BeaconOtaError as error:
            if row is not None and row.label.mac in self._log.rows:
                row = self._write_down(row, error.code, error.message)
            return BoardResult(port, row, error=error)

    def is_done(self, mac: str) -> bool:
        """Whether the chip of an address needs no work."""
        row = self._log.rows.get(mac)
        return not self._again and row is not None and row.result == FLASHED

    def _write_down(self, row: BoardRow, result: str, detail: str = "") -> BoardRow:
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        row = replace(row, result=result, version=self._version, at=at, detail=detail)
        self._log.save(row)
        return row

    def _read_address(self, port: str) -> str:
        """Return a chip's address; a port that has just appeared has some seconds to be usable."""
        names = ("before", "after", "attempts")
        how = {name: value for name, value in self._how.items() if name in names}
        end = time.monotonic() + self._settle_s
        while True:
            try:
                return chip.read_mac_address(port, **how)
            except BeaconOtaError as error:
                if error.code not in _UNSETTLED or time.monotonic() >= end:
                    raise
            time.sleep(LOOK_S)


def new_ports(
    list_ports: ListPorts, *, look_s: float = LOOK_S, go_on: Callable[[], bool] = lambda: True
) -> Iterator[tuple[str, str]]:
    """Yield each port once for each time that it is plugged in, with the address that USB says.

    Args:
        list_ports: the ports that are there now.
        look_s: seconds between two looks.
        go_on: is asked before each look.
    """
    seen: set[str] = set()
    while go_on():
        there = list_ports()
        seen &= there.keys()
        fresh = sorted(there.keys() - seen)
        if not fresh:
            time.sleep(look_s)
            continue
        seen.add(fresh[0])
        yield fresh[0], there[fresh[0]]


def find_ports(patterns: list[str]) -> dict[str, str]:
    """Return the ports that match one of the patterns, by default those of Espressif's chips.

    A chip with USB of its own says its address there; others say "".
    """
    from serial.tools import list_ports

    known = list_ports.comports()
    found = {}
    for one in known:
        chosen = any(fnmatch.fnmatch(one.device, pattern) for pattern in patterns)
        if chosen or not patterns and one.vid == ESPRESSIF:
            own = one.vid == ESPRESSIF and (one.serial_number or "").count(":") == 5
            found[one.device] = (one.serial_number or "").lower() if own else ""
    for pattern in patterns:
        for name in glob.glob(pattern):
            found.setdefault(name, "")
    return found
