"""Registers beacons with the orchestrator while they are provisioned."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from zoneinfo import ZoneInfo

from beacon_ota.errors import DeniedError, InputError, ReachError, UsageError
from beacon_ota.provision.reports import StateReport

if TYPE_CHECKING:
    from beacon_ota.client import Client


class Registry(Protocol):
    """Where beacons are entered."""

    def register(
        self, state: StateReport, key: bytes, config: Mapping[str, object], tags: tuple[str, ...]
    ) -> str:
        """Enter a beacon under its key.

        Returns:
            ``registered``; ``updated``, or ``retyped`` when it was registered as another board.
        """
        ...


class OrchestratorRegistry:
    """Enters beacons through the API of an orchestrator. Doing it again changes nothing."""

    def __init__(self, client: "Client"):
        self._client = client
        self.url = client.url
        self._zones: dict[str, str] | None = None  # time zones by site, once asked for

    def check_access(self, site: str | None) -> None:
        """Check that beacons can be registered, before one of them is changed.

        Raises:
            ReachError: ``unreachable`` from here.
            DeniedError: the token is missing or not good for it.
            InputError: ``site_unknown``.
        """
        try:
            self._client.call("GET", "/api/beacons", params={"limit": 1})
            known = [one["path"] for one in self._client.list_sites()] if site else []
        except ReachError as error:
            raise ReachError(
                "orchestrator_unreachable",
                f"{error.message}. Is it running, is --url right? With --no-register the beacon is "
                "provisioned without it, and its key printed",
                found=error.found,
            ) from None
        except DeniedError as error:
            if error.code == "proxy_refused":
                raise  # no token would help
            raise DeniedError(
                error.code,
                f"{error.message}: beacons are registered with an operator's token "
                "(--token, BEACON_OTA_TOKEN)",
            ) from None
        if site and site not in known:
            raise InputError(
                "site_unknown",
                "there is no such site: add it with beacon-ota site add",
                found=site,
                expected=", ".join(known) or None,
            )

    def complete_offset(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a CONFIG's fields; a window without an offset gets the one of its site, today's.

        Without a site, or at one that is not known, nothing is added: its clock is not known.
        """
        found = dict(config)
        if found.get("window") and "utc_off" not in found and found.get("site"):
            if self._zones is None:
                self._zones = {one["path"]: one["zone"] for one in self._client.list_sites()}
            zone = self._zones.get(found["site"])
            if zone and (offset := datetime.now(ZoneInfo(zone)).utcoffset()) is not None:
                found["utc_off"] = int(offset.total_seconds()) // 60
        return found

    def register(
        self, state: StateReport, key: bytes, config: Mapping[str, object], tags: tuple[str, ...]
    ) -> str:
        """Register a beacon, or give the one that is registered its new key, place and type.

        Raises:
            InputError: ``type_unsaid``: neither the beacon nor ``--type`` names the board.
            DeniedError, ReachError, InputError: as the API has them.
        """
        place = {name: config[name] for name in ("site", "channel") if name in config}
        if tags:
            place["tags"] = list(tags)
        known = self._find_device_type(state.beacon_id)
        if known is None:
            if not state.device_type:
                raise InputError(
                    "type_unsaid", "the beacon does not say what board it is: name it with --type"
                )
            try:
                self._client.create_beacon(
                    state.beacon_id, state.device_type, key=key.hex(), **place
                )
                return "registered"
            except UsageError as error:
                if error.code != "beacon_taken":
                    raise
            known = self._find_device_type(state.beacon_id)
        self._client.set_beacon_key(state.beacon_id, key.hex())
        if place:
            self._client.change_beacon(state.beacon_id, **place)
        if state.device_type in ("", known):
            return "updated"
        self._client.retype_beacon(state.beacon_id, state.device_type, "said when provisioned")
        return "retyped"

    def _find_device_type(self, beacon_id: str) -> str | None:
        """Return the device type of a beacon, None for one that is not registered."""
        try:
            return self._client.get_beacon(beacon_id, 1)["device_type"]
        except InputError as error:
            if error.code != "beacon_unknown":
                raise
            return None
