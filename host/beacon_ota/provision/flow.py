"""Provisions a beacon in range until it is online; provisioning it again does no harm.

connect → prove the PIN → ask who it is → register it → give it key and settings
        → have it join the network → wait until the orchestrator has heard it
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from beacon_ota.errors import ReachError
from beacon_ota.provision.client import ONLINE_TIMEOUT_S, BlufiClient
from beacon_ota.provision.contact import ATTEMPTS, OnStep, talk_to_beacon
from beacon_ota.provision.desired_config import DesiredConfig, Network, Secret
from beacon_ota.provision.registry import Registry
from beacon_ota.provision.reports import StateReport, WifiReport, listed_error
from beacon_ota.provision.scan import BeaconFinder
from beacon_ota.provision.session import SecretError
from beacon_ota.provision.sighting import Sighting
from beacon_ota.virtual.radio.selection import RadioSelection

MAX_WAIT_S = 70  # that a beacon may ask for after wrong PINs before we give up waiting

AskSecret = Callable[[SecretError | None], Awaitable[Secret]]
ChooseNetwork = Callable[[list[tuple[bytes, int]]], Awaitable[Network]]


@dataclass
class Outcome:
    """The outcome of provisioning a beacon.

    ``key`` (hex) is set only when the beacon was not registered; ``mistaken_for`` is the given
    device type, when the beacon names another one.
    """

    name: str
    address: str
    beacon_id: str = ""
    device_type: str = ""
    version: str = ""
    ssid: str = ""
    rssi: int | None = None
    ip: str = ""
    poll: str = "none"
    registered: str = "no"
    mistaken_for: str = ""
    key: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json``."""
        found: dict[str, object] = {
            name: value if value != "" else None for name, value in vars(self).items()
        }
        found["seconds"] = round(self.seconds, 2)
        return found


def fixed_secret(secret: Secret) -> AskSecret:
    """Return a source of a fixed secret, which fails when the secret is wrong."""

    async def give_secret(error: SecretError | None) -> Secret:
        if error is not None:
            raise error
        return secret

    return give_secret


class SecretProver:
    """Proves the secret; asks for it once before the connection, and after every wrong one.

    Args:
        ask: gives the secret.
        pace: how many times faster than real time the beacon's clock runs (virtual beacons only).
    """

    def __init__(
        self, ask: AskSecret, on_step: OnStep = lambda step, detail: None, *, pace: float = 1
    ) -> None:
        self._ask, self._on_step, self._pace = ask, on_step, pace
        self._secret: Secret | None = None

    async def ready(self) -> None:
        """Have a secret at hand."""
        if self._secret is None:
            self._secret = await self._ask(None)

    async def prove(self, beacon: BlufiClient) -> None:
        """Prove it; asks again after a wrong one, waits when it has to.

        Raises:
            SecretError: ``locked``, ``too_soon`` (longer than ``MAX_WAIT_S``), or what ``ask``
                raises. And what :meth:`BlufiClient.prove_secret` raises.
        """
        await self.ready()
        assert self._secret is not None
        while True:
            self._on_step("proving", "")
            try:
                await beacon.prove_secret(pin=self._secret.pin, pop=self._secret.pop)
                return
            except SecretError as refusal:
                if refusal.code == "too_soon" and refusal.wait <= MAX_WAIT_S:
                    self._on_step("waiting", f"{refusal.wait} s")
                    await asyncio.sleep(refusal.wait / self._pace + 0.05)
                    continue
                if refusal.code != "wrong_secret":
                    raise
                self._secret = await self._ask(refusal)


async def provision_beacon(
    found: Sighting,
    radio: RadioSelection,
    ask: AskSecret,
    desired: DesiredConfig,
    registry: Registry | None,
    *,
    choose: ChooseNetwork | None = None,
    on_step: OnStep = lambda step, detail: None,
    attempts: int = ATTEMPTS,
    online_s: float = ONLINE_TIMEOUT_S,
    pace: float = 1,
    finder: BeaconFinder | None = None,
) -> Outcome:
    """Provision one beacon.

    Args:
        found: what a scan has found; it is looked for again when that is a while ago.
        ask: gives the secret.
        registry: where it is registered; None: nowhere, and the outcome has its key.
        choose: picks a network of those the beacon sees, when ``desired`` has none.
        on_step: called with each step and a detail, for people.
        attempts: how often to begin again after a broken connection.
        online_s: seconds to wait for its first authenticated poll.
        pace: see :class:`SecretProver`.
        finder: through which others look for beacons at the same time.

    Raises:
        BeaconOtaError: what went wrong, and what to do. What was done until then stays done;
            provisioning again goes on from there.
    """
    began = time.monotonic()
    outcome = Outcome(found.name, found.address)
    prover = SecretProver(ask, on_step, pace=pace)
    await prover.ready()

    async def talk(beacon: BlufiClient) -> None:
        await prover.prove(beacon)
        await _provision_connected(beacon, desired, registry, choose, on_step, online_s, outcome)

    finder = finder or BeaconFinder(radio)
    await talk_to_beacon(found, finder, talk, on_step=on_step, attempts=attempts)
    outcome.seconds = time.monotonic() - began
    return outcome


async def _provision_connected(
    beacon: BlufiClient,
    desired: DesiredConfig,
    registry: Registry | None,
    choose: ChooseNetwork | None,
    on_step: OnStep,
    online_s: float,
    outcome: Outcome,
) -> None:
    state = await beacon.query_state()
    _record_state(outcome, state)
    typed = desired.device_type
    if not state.device_type:
        state = replace(state, device_type=typed)
    elif typed and typed != state.device_type:
        outcome.mistaken_for = typed
        on_step("mistaken", f"it is no {typed}, it says: {state.device_type}")
    network = desired.network
    if network is None and choose is not None:
        on_step("looking", "for networks")
        network = await choose(await beacon.list_networks())
    key = secrets.token_bytes(32)
    outcome.device_type = state.device_type
    if registry is not None:
        on_step("registering", f"{state.beacon_id} as {state.device_type or 'it is'}")
        outcome.registered = await asyncio.to_thread(
            registry.register, state, key, desired.config, desired.tags
        )
    else:
        outcome.key = key.hex()
    on_step("configuring", "")
    await beacon.configure(**desired.config, beacon_key=key)
    if desired.creds is not None:
        await beacon.replace_credentials(desired.credentials_for(state.beacon_id))
    if network is not None:
        await _join_network(beacon, network, on_step, outcome)
    if registry is not None:
        on_step("waiting", "for the orchestrator to hear it")
        _record_state(outcome, await beacon.wait_online(seconds=online_s))


async def _join_network(
    beacon: BlufiClient, network: Network, on_step: OnStep, outcome: Outcome
) -> None:
    name = network.ssid.decode("utf-8", "replace")
    on_step("joining", name)

    def on_report(report: WifiReport) -> None:
        on_step("joining", f"{name}: {report.word}")

    async def join() -> WifiReport:
        return await beacon.join_network(network.ssid, network.password, on_report=on_report)

    try:
        report = await join()
    except ReachError as error:
        if error.code != "wifi_not_found":
            raise
        seen = await _list_seen_networks(beacon)
        if seen is None or network.ssid not in dict(seen):
            error.expected = _describe_networks(seen)
            raise
        on_step("joining", f"{name}, which it sees: once more")
        try:
            report = await join()
        except ReachError as again:
            if again.code == "wifi_not_found":
                raise listed_error(beacon.name, network.ssid, dict(seen)[network.ssid]) from None
            raise
    outcome.ssid, outcome.rssi = name, report.rssi


async def _list_seen_networks(beacon: BlufiClient) -> list[tuple[bytes, int]] | None:
    """Return the networks that a beacon sees, None when it cannot say."""
    try:
        return await beacon.list_networks()
    except ReachError:
        return None


def _describe_networks(seen: list[tuple[bytes, int]] | None) -> str:
    if seen is None:
        return "it cannot say what it sees"
    names = [f"{ssid.decode('utf-8', 'replace')} ({rssi} dBm)" for ssid, rssi in seen]
    return "one of " + ", ".join(names) if names else "it sees no network at all"


def _record_state(outcome: Outcome, state: StateReport) -> None:
    outcome.beacon_id = state.beacon_id
    outcome.device_type = state.device_type or outcome.device_type
    outcome.version, outcome.ip, outcome.poll = state.version, state.ip, state.poll
