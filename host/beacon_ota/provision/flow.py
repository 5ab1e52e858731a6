"""From a beacon in range to a beacon online, in one go; doing it again does no harm.

connect → prove the PIN → ask who it is → register it → give it key and settings
        → have it join the network → wait until the orchestrator has heard it
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from beacon_ota.errors import ReachError
from beacon_ota.provision.client import ONLINE_S, BlufiClient, StateReport, WifiReport
from beacon_ota.provision.desired_config import DesiredConfig, Network, Secret
from beacon_ota.provision.registry import Registry
from beacon_ota.provision.scan import Sighting
from beacon_ota.provision.session import SecretError
from beacon_ota.virtual.radio.selection import RadioSelection

ATTEMPTS = 3
AGAIN_S = 0.5
PATIENCE_S = 70  # that a beacon may ask for after wrong PINs before we give up waiting
_AGAIN = ("disconnected", "no_answer", "out_of_range")

OnStep = Callable[[str, str], None]
AskSecret = Callable[[SecretError | None], Awaitable[Secret]]
ChooseNetwork = Callable[[list[tuple[bytes, int]]], Awaitable[Network]]


@dataclass
class Outcome:
    """What became of a beacon.

    ``key`` (hex) only when nobody has registered it; ``mistaken_for`` is the device type that was
    given for it, when it says another one.
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
    """Answer with a secret that is at hand; a wrong one is the end."""

    async def ask(error: SecretError | None) -> Secret:
        if error is not None:
            raise error
        return secret

    return ask


class SecretProver:
    """Has the secret, or asks for it: once before anybody connects, and after every wrong one.

    Args:
        ask: gives the secret.
        pace: how many times faster than ours the beacon's clock runs; virtual ones may.
    """

    def __init__(
        self, ask: AskSecret, tell: OnStep = lambda step, detail: None, *, pace: float = 1
    ) -> None:
        self._ask, self._tell, self._pace = ask, tell, pace
        self._secret: Secret | None = None

    async def ready(self) -> None:
        """Have a secret at hand."""
        if self._secret is None:
            self._secret = await self._ask(None)

    async def prove(self, beacon: BlufiClient) -> None:
        """Prove it; asks again after a wrong one, waits when it has to.

        Raises:
            SecretError: ``locked``, ``too_soon`` (longer than anybody waits), or what ``ask``
                raises. And what :meth:`BlufiClient.prove_secret` raises.
        """
        await self.ready()
        assert self._secret is not None
        while True:
            self._tell("proving", "")
            try:
                await beacon.prove_secret(pin=self._secret.pin, pop=self._secret.pop)
                return
            except SecretError as refusal:
                if refusal.code == "too_soon" and refusal.wait <= PATIENCE_S:
                    self._tell("waiting", f"{refusal.wait} s")
                    await asyncio.sleep(refusal.wait / self._pace + 0.05)
                    continue
                if refusal.code != "wrong_secret":
                    raise
                self._secret = await self._ask(refusal)


async def provision_beacon(
    found: Sighting,
    radio: RadioSelection,
    ask: AskSecret,
    wanted: DesiredConfig,
    registry: Registry | None,
    *,
    choose: ChooseNetwork | None = None,
    tell: OnStep = lambda step, detail: None,
    attempts: int = ATTEMPTS,
    online_s: float = ONLINE_S,
    pace: float = 1,
) -> Outcome:
    """Provision one beacon.

    Args:
        ask: gives the secret.
        registry: where it is registered; None: nowhere, and the outcome has its key.
        choose: picks a network of those the beacon sees, when ``wanted`` has none.
        tell: called with each step and a detail, for people.
        attempts: how often to begin again after a broken connection.
        online_s: seconds to wait for its first authenticated poll.
        pace: see :class:`SecretProver`.

    Raises:
        BeaconOtaError: what went wrong, and what to do. What was done until then stays done;
            provisioning again goes on from there.
    """
    began = time.monotonic()
    outcome = Outcome(found.name, found.address)
    prover = SecretProver(ask, tell, pace=pace)
    await prover.ready()
    for attempt in range(1, attempts + 1):
        try:
            await _once(found, radio, prover, wanted, registry, choose, tell, online_s, outcome)
            break
        except ReachError as error:
            if error.code not in _AGAIN or attempt == attempts:
                raise
            tell("again", error.message)
            await asyncio.sleep(AGAIN_S)  # the beacon may have to end what was begun
    outcome.seconds = time.monotonic() - began
    return outcome


async def _once(
    found: Sighting,
    radio: RadioSelection,
    prover: SecretProver,
    wanted: DesiredConfig,
    registry: Registry | None,
    choose: ChooseNetwork | None,
    tell: OnStep,
    online_s: float,
    outcome: Outcome,
) -> None:
    tell("connecting", found.name)
    async with BlufiClient(found.device, found.name, radio) as beacon:
        await prover.prove(beacon)
        state = await beacon.query_state()
        _note(outcome, state)
        typed = wanted.device_type
        if not state.device_type:
            state = replace(state, device_type=typed)
        elif typed and typed != state.device_type:
            outcome.mistaken_for = typed
            tell("mistaken", f"it is no {typed}, it says: {state.device_type}")
        network = wanted.network
        if network is None and choose is not None:
            tell("looking", "for networks")
            network = await choose(await beacon.list_networks())
        key = secrets.token_bytes(32)
        outcome.device_type = state.device_type
        if registry is not None:
            tell("registering", f"{state.beacon_id} as {state.device_type or 'it is'}")
            outcome.registered = await asyncio.to_thread(
                registry.register, state, key, wanted.config, wanted.tags
            )
        else:
            outcome.key = key.hex()
        tell("configuring", "")
        await beacon.configure(**wanted.config, beacon_key=key)
        if wanted.creds is not None:
            await beacon.replace_credentials(wanted.credentials_for(state.beacon_id))
        if network is not None:
            await _join(beacon, network, tell, outcome)
        if registry is not None:
            tell("waiting", "for the orchestrator to hear it")
            _note(outcome, await beacon.wait_online(seconds=online_s))


async def _join(beacon: BlufiClient, network: Network, tell: OnStep, outcome: Outcome) -> None:
    name = network.ssid.decode("utf-8", "replace")
    tell("joining", name)

    def on_report(report: WifiReport) -> None:
        tell("joining", f"{name}: {report.word}")

    try:
        report = await beacon.join_network(network.ssid, network.password, tell=on_report)
    except ReachError as error:
        if error.code == "wifi_not_found":
            error.expected = await _seen(beacon)
        raise
    outcome.ssid, outcome.rssi = name, report.rssi


async def _seen(beacon: BlufiClient) -> str:
    """Say which networks a beacon does see."""
    try:
        found = await beacon.list_networks()
    except ReachError:
        return "it cannot say what it sees"
    names = [f"{ssid.decode('utf-8', 'replace')} ({rssi} dBm)" for ssid, rssi in found]
    return "one of " + ", ".join(names) if names else "it sees no network at all"


def _note(outcome: Outcome, state: StateReport) -> None:
    outcome.beacon_id = state.beacon_id
    outcome.device_type = state.device_type or outcome.device_type
    outcome.version, outcome.ip, outcome.poll = state.version, state.ip, state.poll
