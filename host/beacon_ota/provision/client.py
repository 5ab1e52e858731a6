"""A BluFi session with one beacon, message by message.

    async with BlufiClient(sighting.device, sighting.name, radio) as beacon:
        await beacon.prove_secret(pin="73914826")
        state = await beacon.query_state()
        await beacon.configure(beacon_key=key, orch_url="http://orchestrator.local:8080")
        await beacon.join_network(b"site", b"correct horse", on_report=print)
        await beacon.wait_online()

Every failure is a named error that says what to do. Only the exchange of keys is not encrypted.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from beacon_ota.errors import InputError, ReachError
from beacon_ota.provision.gatt import GattConnection
from beacon_ota.provision.reports import (
    StateReport,
    WifiReport,
    join_error,
    peer_error,
    poll_error,
    setting_refused,
)
from beacon_ota.provision.session import SEALED, Initiator, error_from_abort
from beacon_ota.virtual.radio.selection import RadioSelection
from beacon_ota.wire import blufi, ec1, tlv, wifi, wifi_reader
from beacon_ota.wire.blufi_names import error_name, type_name

if TYPE_CHECKING:
    from bleak.backends.device import BLEDevice

ANSWER_TIMEOUT_S = 10.0  # for answers without a computation
EXCHANGE_TIMEOUT_S = 20.0  # for the beacon's computations in the key exchange
QUEUE_TIMEOUT_S = 60.0  # for earlier clients, which prove no secret, to time out
SCAN_TIMEOUT_S = 25.0
JOIN_TIMEOUT_S = 60.0  # for a network, attempts and DHCP included
ONLINE_TIMEOUT_S = 90.0  # for the first authenticated poll

_BURST = 8  # packets in a row
_WANTS_ACK = 0x08


class BlufiClient:
    """A session; use it as ``async with``.

    Args:
        device: what a scan found, or an address.
        name: under which the beacon advertises: both sides of the exchange hash it.
        radio: which adapter or room.
        mtu: see :class:`~beacon_ota.provision.gatt.GattConnection`.
    """

    def __init__(
        self, device: "BLEDevice | str", name: str, radio: RadioSelection, *, mtu: int | None = None
    ):
        self.name = name
        self._gatt = GattConnection(device, name, radio, mtu=mtu)
        self._link = blufi.Link(False)
        self._sealed = self._transmitting = False
        self.state = StateReport()
        self.wifi_report: WifiReport | None = None

    async def __aenter__(self) -> Self:
        await self._gatt.__aenter__()
        self._link.mtu = self._gatt.mtu
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._gatt.gone and self._sealed:
            try:
                await self._send_message(blufi.DISCONNECT_BLE)
            except ReachError:
                pass  # the beacon disconnected first
        await self._gatt.__aexit__()

    # -- the exchange of keys

    async def protocol_version(self) -> tuple[int, int]:
        """Return the version of BluFi that the beacon speaks."""
        await self._send_message(blufi.GET_VERSION)
        data = (await self._expect_message(blufi.VERSION, ANSWER_TIMEOUT_S)).data
        if len(data) != 2:
            raise self._protocol_error(f"a version of {len(data)} bytes")
        return data[0], data[1]

    async def prove_secret(self, *, pin: str | None = None, pop: bytes | None = None) -> None:
        """Prove the PIN, or the proof of possession, and have the beacon prove it.

        Raises:
            SecretError: ``wrong_secret``, ``too_soon``, ``locked``.
            DeniedError: ``closed``.
            ReachError: ``disconnected``, ``no_answer``.
            InputError: ``ec1_…`` or ``blufi_…``: it does not follow the protocol.
        """
        exchange = Initiator(self.name.encode(), pin=pin, pop=pop)
        await self._send_message(blufi.NEGOTIATE, await asyncio.to_thread(exchange.hello))
        message = await self._expect_negotiation(EXCHANGE_TIMEOUT_S + QUEUE_TIMEOUT_S)
        await self._send_message(blufi.NEGOTIATE, await asyncio.to_thread(exchange.answer, message))
        records = exchange.finish(await self._expect_negotiation())
        self._link.protect(SEALED, records)
        self._sealed = True

    async def _expect_negotiation(self, seconds: float = EXCHANGE_TIMEOUT_S) -> bytes:
        return (await self._expect_message(blufi.NEGOTIATE, seconds)).data

    # -- requests

    async def list_networks(self) -> list[tuple[bytes, int]]:
        """Return the networks the beacon sees, as (SSID, RSSI in dBm), the strongest first.

        Raises:
            ReachError: ``wifi_scan``: it cannot look at the moment.
        """
        await self._send_message(blufi.GET_LIST)
        message = await self._expect_message(blufi.LIST, SCAN_TIMEOUT_S)
        try:
            return wifi_reader.parse_list(message.data)
        except blufi.BlufiError:
            raise self._protocol_error("a malformed list of networks") from None

    async def wifi_status(self) -> WifiReport:
        """Return the state of the beacon's WiFi."""
        await self._send_message(blufi.GET_STATUS)
        await self._expect_message(blufi.REPORT, ANSWER_TIMEOUT_S)
        assert self.wifi_report is not None
        return self.wifi_report

    async def query_state(self) -> StateReport:
        """Ask the beacon for its state."""
        return await self._exchange_custom(tlv.QUERY, {})

    async def configure(self, **fields: Any) -> StateReport:
        """Give settings; fields by the names and types of CONFIG in ``wire/tlv.py``.

        Raises:
            InputError: ``setting_refused``: the beacon will not have one of them; it took none.
        """
        return await self._exchange_custom(tlv.CONFIG, fields)

    async def replace_credentials(self, creds: bytes) -> StateReport:
        """Replace the credentials that open the door: ids of 4 and secrets of 16 bytes, in turn."""
        return await self._exchange_custom(tlv.CREDENTIALS, {"creds": creds})

    async def forget(self) -> StateReport:
        """Have the beacon forget its settings; it resets a second later."""
        return await self._exchange_custom(tlv.FORGET, {})

    async def _exchange_custom(self, kind: int, fields: dict[str, Any]) -> StateReport:
        try:
            data = tlv.encode(kind, fields)
        except tlv.TlvError as error:
            raise InputError("setting_value", f"{error.field}: {error.what}") from None
        await self._send_message(blufi.CUSTOM, data)
        await self._expect_message(blufi.CUSTOM, ANSWER_TIMEOUT_S)
        if self.state.refused:
            raise setting_refused(self.name, self.state)
        return self.state

    # -- going online

    async def join_network(
        self,
        ssid: bytes,
        password: bytes = b"",
        *,
        on_report: Callable[[WifiReport], None] = lambda report: None,
        seconds: float = JOIN_TIMEOUT_S,
    ) -> WifiReport:
        """Have the beacon join a network; it stores it once that has worked.

        Args:
            on_report: called with every report on the way.

        Raises:
            DeniedError: ``wifi_wrong_password``.
            ReachError: ``wifi_not_found``, ``wifi_failed``, ``wifi_timeout``.
            InputError: ``setting_refused``: the network works, but cannot be stored.
        """
        self.state = replace(self.state, refused="")
        await self._send_message(blufi.SET_OPMODE, bytes((wifi.OPMODE_STA,)))
        await self._send_message(blufi.STA_SSID, ssid)
        await self._send_message(blufi.STA_PASSWORD, password)
        await self._send_message(blufi.CONNECT)
        end = time.monotonic() + seconds
        while True:
            await self._expect_message(blufi.REPORT, end - time.monotonic(), code="wifi_timeout")
            assert self.wifi_report is not None
            on_report(self.wifi_report)
            if self.wifi_report.word == "connected" and self.wifi_report.ssid == ssid:
                return self.wifi_report
            if self.wifi_report.word == "failed":
                if self.state.refused:
                    raise setting_refused(self.name, self.state)
                raise join_error(self.name, ssid, self.wifi_report)

    async def wait_online(
        self,
        *,
        on_state: Callable[[StateReport], None] = lambda state: None,
        seconds: float = ONLINE_TIMEOUT_S,
    ) -> StateReport:
        """Wait for the result of the beacon's first authenticated poll.

        Raises:
            ReachError: ``poll_…``: why it has not been heard, in its own word; at once for
                ``poll_stranger``: something answers that is not the orchestrator.
            DeniedError: ``poll_refused``: the orchestrator answers and will not have it.
        """
        end = time.monotonic() + seconds
        while self.state.poll != "ok":
            if self.state.poll in ("refused", "stranger"):
                raise poll_error(self.name, self.state)
            message = await self._next_message(blufi.CUSTOM, end - time.monotonic())
            if message is None:
                raise poll_error(self.name, self.state)
            on_state(self.state)
        return self.state

    # -- frames

    async def _send_message(self, kind: int, data: bytes = b"") -> None:
        # Many small frames in a row may be more than the beacon has room for: each is then sent
        # when the one before was acknowledged.
        self._link.send(kind, data, ack=len(data) > _BURST * self._link.mtu)
        await self._transmit_frames()

    async def _transmit_frames(self) -> None:
        if self._transmitting:
            return  # called while an acknowledgement is waited for: the loop below goes on
        self._transmitting = True
        try:
            while (frame := self._link.transmit()) is not None:
                await self._gatt.send(frame)
                if frame[1] & _WANTS_ACK:
                    acknowledged = await self._expect_message(blufi.ACK, ANSWER_TIMEOUT_S)
                    if acknowledged.data != frame[2:3]:
                        raise self._protocol_error("an acknowledgement of another frame")
        finally:
            self._transmitting = False

    async def _expect_message(
        self, kind: int, seconds: float, *, code: str = "no_answer"
    ) -> "blufi.Message":
        message = await self._next_message(kind, seconds)
        if message is None:
            raise ReachError(
                code, f"{self.name} did not answer in time: try again", expected=type_name(kind)
            )
        return message

    async def _next_message(self, kind: int, seconds: float) -> "blufi.Message | None":
        """Return the next message of a kind, None in time; other messages update the state."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            frame = await self._gatt.receive(left)
            if frame is None:
                return None
            message = self._decode_frame(frame)
            await self._transmit_frames()
            if message is not None and message.type == kind:
                return message
        return None

    def _decode_frame(self, frame: bytes) -> "blufi.Message | None":
        try:
            message = self._link.receive(frame)
        except blufi.BlufiError as error:
            raise self._protocol_error(
                f"a frame that is refused: {error_name(error.code)}"
            ) from None
        if message is None:
            return None
        if self._sealed and not message.sealed and message.type not in (blufi.ACK, blufi.ERROR):
            raise self._protocol_error(f"{type_name(message.type)} in the clear")
        if message.type == blufi.ERROR:
            raise peer_error(self.name, message.data)
        if message.type == blufi.NEGOTIATE:
            self._check_abort(message.data)
        elif message.type == blufi.REPORT:
            self._record_report(message.data)
        elif message.type == blufi.CUSTOM:
            self._record_state(message.data)
        return message

    def _check_abort(self, data: bytes) -> None:
        if len(data) > 2 and data[0] == ec1.MAGIC and data[2] == ec1.ABORT:
            try:
                ec1.parse_message(data, ec1.S_HELLO, (ec1.SPAKE2, ec1.ECDH))
            except ec1.Abort as abort:
                raise error_from_abort(abort) from None

    def _record_report(self, data: bytes) -> None:
        try:
            found = wifi_reader.parse_report(data)
        except blufi.BlufiError:
            raise self._protocol_error("a malformed report") from None
        self.wifi_report = WifiReport.of(found)

    def _record_state(self, data: bytes) -> None:
        try:
            kind, fields = tlv.decode(data)
        except tlv.TlvError as error:
            raise self._protocol_error(f"custom data: {error}") from None
        if kind == tlv.STATE:
            self.state = StateReport.of(fields)

    def _protocol_error(self, what: str) -> InputError:
        return InputError("blufi_protocol", f"{self.name} sends {what}", found=what)
