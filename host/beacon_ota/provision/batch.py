"""Provisions many beacons from a CSV file, a row each; it can be run again for the rest.

Columns: ``beacon`` (name, last digits of it, or address) and ``pin`` or ``pop``; optional ``ssid``
``password`` ``ssid2`` ``password2`` ``site`` ``channel`` ``window`` ``utc_off`` ``ibeacon``
``orch_url`` ``fleet_key`` ``type`` (the expected board; the beacon's own statement counts) ``tags``
(separated by blanks). An empty field takes the value that was given for all rows. Commas,
semicolons or tabs separate the columns. Network names and passwords are used exactly as written,
blanks included; a name that is not text is written ``hex:…``.
"""

import asyncio
import csv
import io
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from beacon_ota.errors import BeaconOtaError, InputError, ReachError, UsageError
from beacon_ota.provision import desired_config, flow, labels, scan
from beacon_ota.provision.adapter_watch import AdapterWatch, watch_adapter
from beacon_ota.provision.desired_config import DesiredConfig, Network, Secret
from beacon_ota.provision.flow import Outcome
from beacon_ota.provision.registry import Registry
from beacon_ota.provision.sighting import TURNS_S, Sighting
from beacon_ota.virtual.radio.selection import RadioSelection
from beacon_ota.wire import adverts

MAX_ROWS = 10_000
MAX_BYTES = 4 << 20
CONFIG = ("orch_url", "fleet_key", "site", "window", "utc_off", "channel", "ibeacon")
COLUMNS = (
    "beacon",
    "pin",
    "pop",
    "ssid",
    "password",
    "ssid2",
    "password2",
    *CONFIG,
    "type",
    "tags",
)
VERBATIM = ("ssid", "password", "ssid2", "password2")  # blanks may be part of these
IGNORED = ("mac", "address", "name", "result", "version", "at", "detail")  # of files of labels
_ROUNDED = re.compile(r"\d+([.,]\d+)?[eE]\+\d+|\d+[.,]0+")


@dataclass(frozen=True)
class Row:
    """One beacon of the file: its line, who it is, its secret, what it gets."""

    line: int
    beacon: str
    secret: Secret = field(repr=False)
    desired: DesiredConfig = field(repr=False)


@dataclass
class RowResult:
    """The result of a row: ``provisioned``, ``already`` (it was), or the code of an error."""

    line: int
    beacon: str
    result: str
    outcome: Outcome | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the beacon is provisioned now."""
        return self.result in ("provisioned", "already")

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json``."""
        more = self.outcome.as_dict() if self.outcome else {}
        return {
            "line": self.line,
            "beacon": self.beacon,
            "result": self.result,
            "detail": self.detail or None,
            **{name: value for name, value in more.items() if name != "name"},
        }


def parse_rows(
    text: str,
    common: Mapping[str, str | None],
    creds: bytes | None = None,
    bound: frozenset[bytes] = frozenset(),
) -> list[Row]:
    """Read the file.

    Args:
        common: values by column for rows that have none of their own.
        creds: for all of them.
        bound: ids of those of which each beacon gets its own key.

    Raises:
        InputError: ``batch_columns``, ``batch_row`` (with the line), ``batch_empty``.
    """
    text = text.removeprefix("\ufeff")
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=_find_delimiter(text), strict=True
    )
    try:
        unknown = set(reader.fieldnames or ()) - {*COLUMNS, *IGNORED}
        if "beacon" not in (reader.fieldnames or ()) or unknown:
            raise InputError(
                "batch_columns",
                "these are not the columns of a batch file",
                found=", ".join(map(str, reader.fieldnames or ())) or "an empty file",
                expected=", ".join(COLUMNS),
            )
        rows: list[Row] = []
        seen: dict[str, int] = {}
        proofs: dict[bytes, int] = {}
        for fields in reader:
            row = _parse_row(reader.line_num, fields, common, creds, bound)
            if (first := seen.setdefault(row.beacon.upper(), row.line)) != row.line:
                raise InputError(
                    "batch_row", f"line {row.line}: {row.beacon} is in line {first} already"
                )
            # An exchange says by its proof alone which beacon it is meant for.
            pop = row.secret.pop
            if pop and (first := proofs.setdefault(pop, row.line)) != row.line:
                raise InputError(
                    "batch_row",
                    f"line {row.line}: the proof of possession of line {first}; each beacon has "
                    "its own, or one could be provisioned in place of the other",
                )
            rows.append(row)
            if len(rows) > MAX_ROWS:
                raise InputError("batch_row", f"more than {MAX_ROWS} rows")
    except csv.Error as error:
        raise InputError("batch_row", f"line {reader.line_num}: {error}") from None
    if not rows:
        raise InputError("batch_empty", "there is no beacon in the file")
    return rows


def _parse_row(
    line: int,
    fields: Mapping[str, str | None],
    common: Mapping[str, str | None],
    creds: bytes | None,
    bound: frozenset[bytes],
) -> Row:
    if None in fields:
        raise InputError("batch_row", f"line {line}: more fields than columns")
    own = {
        name: value if name in VERBATIM else value.strip()
        for name, value in fields.items()
        if value is not None
    }
    for name in ("beacon", "pin", "pop"):
        _check_number(line, name, own.get(name) or "")
    given = {**common, **{name: value or common.get(name) for name, value in own.items()}}
    beacon = given.get("beacon")
    if not beacon:
        raise InputError("batch_row", f"line {line}: no beacon")
    try:
        pop = given.get("pop")
        pin = given.get("pin") if own.get("pin") or not pop else None
        secret = Secret(pin, pop.encode() if pop and not pin else None)
        networks = [
            Network.of(ssid, given.get("password" + which) or "")
            if (ssid := given.get("ssid" + which))
            else None
            for which in ("", "2")
        ]
        board = desired_config.check_device_type(given.get("type"))
        config = desired_config.config_fields(
            {name: given.get(name) for name in CONFIG}, networks[1]
        )
    except UsageError as error:
        raise InputError("batch_row", f"line {line}: {error.message}", found=error.found) from None
    tags = tuple((given.get("tags") or "").split())
    return Row(line, beacon, secret, DesiredConfig(networks[0], config, tags, creds, bound, board))


def _find_delimiter(text: str) -> str:
    """Return what separates the columns: spreadsheets write what their country's lists have."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _check_number(line: int, name: str, value: str) -> None:
    """Refuse what a spreadsheet has made of digits: 1,2E+07, or a PIN without its leading zeros.

    Such a PIN would be sent, be wrong, and count as a guess; after ten the beacon locks.
    """
    short = name == "pin" and value.isdigit() and len(value) < labels.DIGITS
    if short or _ROUNDED.fullmatch(value):
        raise InputError(
            "batch_row",
            f"line {line}: {name} looks like a number that a spreadsheet has changed",
            found=f"{len(value)} digits" if short else value,
            expected="the column as text: eight digits, leading zeros included"
            if short
            else "the column as text",
        )


async def provision_rows(
    rows: list[Row],
    radio: RadioSelection,
    registry: Registry | None,
    *,
    jobs: int = 1,
    search_s: float = 15.0,
    online_s: float = flow.ONLINE_TIMEOUT_S,
    attempts: int = flow.ATTEMPTS,
    pace: float = 1,
    on_start: Callable[[Row], None] = lambda row: None,
    on_step: Callable[[Row, str, str], None] = lambda row, step, detail: None,
    on_result: Callable[[RowResult], None] = lambda done: None,
) -> list[RowResult]:
    """Provision all of them; one that fails stops no other.

    Args:
        jobs: how many at a time; most adapters are happiest with one.
        search_s: seconds to look for each.
        pace: how many times faster than real time the beacons' clocks run (virtual ones only).
        on_start, on_step, on_result: called in the event loop: when a row's turn comes, at each of
            its steps (a word of :mod:`~beacon_ota.provision.flow`, and a detail), and when it is
            over.
    """
    turn = asyncio.Semaphore(jobs)
    finder = scan.BeaconFinder(radio)

    async def provision_row(row: Row, adapter: AdapterWatch) -> RowResult:
        def provision(sighting: Sighting) -> Awaitable[Outcome]:
            return flow.provision_beacon(
                sighting,
                radio,
                flow.fixed_secret(row.secret),
                row.desired,
                registry,
                on_step=lambda step, detail: on_step(row, step, detail),
                attempts=attempts,
                online_s=online_s,
                pace=pace,
                finder=finder,
            )

        async with turn:
            on_start(row)
            try:
                result = await adapter.run(_find_and_provision(row, finder, search_s, provision))
            except BeaconOtaError as error:
                result = RowResult(row.line, row.beacon, error.code, None, error.message)
            on_result(result)
            return result

    async with watch_adapter(radio) as adapter:
        return await asyncio.gather(*(provision_row(row, adapter) for row in rows))


async def _find_and_provision(
    row: Row,
    finder: scan.BeaconFinder,
    search_s: float,
    provision: Callable[[Sighting], Awaitable[Outcome]],
) -> RowResult:
    sighting = await finder.find(row.beacon, search_s, opened=False)
    if not sighting.open:
        provisioned = sighting.has(adverts.PROVISIONED)
        if provisioned and sighting.remembered:
            return RowResult(row.line, row.beacon, "already")
        # A provisioned beacon has closed its window. One report does not tell of a beacon of before
        # the flag OPEN: its provisionable frame takes turns with the other.
        try:
            sighting = await finder.find(row.beacon, 2 * TURNS_S)
        except ReachError as error:
            if error.code == "closed" and provisioned:
                return RowResult(row.line, row.beacon, "already")
            raise
    outcome = await provision(sighting)
    detail = f"it is no {outcome.mistaken_for}" if outcome.mistaken_for else ""
    return RowResult(row.line, row.beacon, "provisioned", outcome, detail)
