"""The packets of a beacon's peers: one at a time, in turn with the events, as NimBLE handles them.

The GATT server of bumble builds most answers; this class has the order of NimBLE's one task, its
memory (:mod:`.blocks`), its long writes, and the indications that it counts.
"""

import asyncio
import inspect
import struct
from typing import Any

from bumble import att
from bumble.core import InvalidPacketError
from bumble.device import Connection, Device
from bumble.gatt_server import Server

from beacon_ota.virtual.radio.blocks import BlockPool, Outbox
from beacon_ota.virtual.radio.events import (
    GATTC_INDICATE,
    GATTC_NOTIFY,
    MTU_EXCHANGED,
    IrqQueue,
)
from beacon_ota.virtual.radio.indications import Indications
from beacon_ota.virtual.radio.prepared import PreparedWrites

_WRITES = (att.ATT_Write_Request, att.ATT_Write_Command, att.ATT_Prepare_Write_Request)
# Requests whose response uses the packet that the request came in; every other takes a block.
_REUSED = (
    att.ATT_Exchange_MTU_Request,
    att.ATT_Prepare_Write_Request,
    att.ATT_Execute_Write_Request,
)


class PacketServer(Server):
    """The server of a beacon, as far as packets go; :class:`.attributes.GattServer` has the rest.

    Args:
        device: the host stack.
        events: the queue of packets and calls to the IRQ handler of beacon code.
    """

    def __init__(self, device: Device, events: IrqQueue) -> None:
        super().__init__(device)
        self.indications = Indications(events, self._disconnect)
        self._irq_queue = events
        self._blocks = BlockPool()
        self._outbox = Outbox(self._blocks)
        self._prepared = PreparedWrites(
            self._blocks, asyncio.get_running_loop().call_later, self._disconnect
        )

    def on_pdu(self, bearer: Connection, pdu: bytes) -> None:
        """Handle an ATT PDU of a peer when everything before it is done."""
        self._irq_queue.run_in_turn(lambda: self._handle_pdu(bearer, pdu))

    async def _handle_pdu(self, bearer: Connection, pdu: bytes) -> None:
        if len(pdu) > bearer.att_mtu:
            return  # NimBLE drops it, and the peer waits in vain
        try:
            parsed = att.ATT_PDU.from_bytes(pdu)
        except (struct.error, IndexError, ValueError, InvalidPacketError):
            if pdu and pdu[0] in att.ATT_REQUESTS:
                self.send_error(bearer, pdu[0], 0, att.ATT_INVALID_PDU_ERROR)
            return
        if isinstance(parsed, att.ATT_Handle_Value_Notification):
            await self._pass_on(GATTC_NOTIFY, bearer, parsed)
        elif isinstance(parsed, att.ATT_Handle_Value_Indication):
            await self._pass_on(GATTC_INDICATE, bearer, parsed)
            self.send_response(bearer, att.ATT_Handle_Value_Confirmation())
        elif not parsed.op_code & 1:  # what is left are answers to requests that nobody made
            await self._answer(bearer, parsed)

    async def _pass_on(self, event: int, bearer: Connection, pdu: Any) -> None:
        await self._irq_queue.call_in_turn(
            event, bearer.handle, pdu.attribute_handle, pdu.attribute_value
        )

    async def _answer(self, bearer: Connection, pdu: att.ATT_PDU) -> None:
        held = int(pdu.op_code in att.ATT_REQUESTS and not isinstance(pdu, _REUSED))
        self._release_sent(bearer)
        if not self._blocks.take(held):
            self.send_error(bearer, pdu.op_code, 0, att.ATT_INSUFFICIENT_RESOURCES_ERROR)
            return
        try:
            if isinstance(pdu, _WRITES):
                await self._check_write(bearer, pdu)
            await self._run_handler(bearer, pdu)
        except att.ATT_Error as error:
            if pdu.op_code in att.ATT_REQUESTS:  # a command has no answer
                self.send_error(bearer, pdu.op_code, error.att_handle, error.error_code)
        finally:
            self._blocks.give_back(held)

    async def _run_handler(self, bearer: Connection, pdu: att.ATT_PDU) -> None:
        handler = getattr(type(self), f"on_{pdu.name.lower()}", None)
        if handler is None:
            if pdu.op_code in att.ATT_REQUESTS:
                self.on_att_request(bearer, pdu)
            return
        result = inspect.unwrap(handler)(self, bearer, pdu)  # without the task that bumble makes
        if inspect.isawaitable(result):
            await result

    async def on_att_exchange_mtu_request(  # type: ignore[override]
        self, bearer: Any, request: att.ATT_Exchange_MTU_Request
    ) -> None:
        """Agree on the MTU; an event tells of it, also when it stays at 23."""
        self.send_response(bearer, att.ATT_Exchange_MTU_Response(server_rx_mtu=self.max_mtu))
        mtu = min(self.max_mtu, max(request.client_rx_mtu, att.ATT_DEFAULT_MTU))
        bearer.on_att_mtu_update(mtu)
        await self._irq_queue.call_in_turn(MTU_EXCHANGED, bearer.handle, mtu)

    def on_att_prepare_write_request(
        self, bearer: Any, request: att.ATT_Prepare_Write_Request
    ) -> None:
        """Keep a part of a long value, in the memory that all links share."""
        handle, offset = request.attribute_handle, request.value_offset
        if self.get_attribute(handle) is None:
            raise att.ATT_Error(att.ATT_INVALID_HANDLE_ERROR, handle)
        if self.device.connections.get(bearer.handle) is not bearer:
            return
        error = self._prepared.add(bearer, handle, offset, request.part_attribute_value)
        if error:
            raise att.ATT_Error(error, handle)
        self.send_response(
            bearer,
            att.ATT_Prepare_Write_Response(
                attribute_handle=handle,
                value_offset=offset,
                part_attribute_value=request.part_attribute_value,
            ),
        )

    async def on_att_execute_write_request(  # type: ignore[override]
        self, bearer: Any, request: att.ATT_Execute_Write_Request
    ) -> None:
        """Write the prepared values, or drop them."""
        if not request.flags:
            self._prepared.drop(bearer)
        else:
            for handle, value in self._prepared.pop_values(bearer):
                attribute = self.get_attribute(handle)
                assert attribute is not None
                await attribute.write_value(bearer, value)
        self.send_response(bearer, att.ATT_Execute_Write_Response())

    async def on_att_handle_value_confirmation(  # type: ignore[override]
        self, bearer: Any, confirmation: att.ATT_Handle_Value_Confirmation
    ) -> None:
        """Report the end of an indication."""
        await self.indications.confirm(bearer)

    def on_disconnection(self, bearer: att.Bearer) -> None:
        """Forget a peer that has gone, and give back what it held."""
        super().on_disconnection(bearer)
        self._prepared.drop(bearer)

    def stop_timers(self) -> None:
        """Forget what waits for peers: the stack ends."""
        self._prepared.stop_timers()
        self.indications.stop_timers()

    async def _check_write(self, bearer: Connection, pdu: Any) -> None:
        """Raise the ATT error of a write that is not permitted."""

    def _disconnect(self, bearer: Any) -> None:
        self._irq_queue.spawn_task(bearer.disconnect())

    def _release_sent(self, bearer: Connection) -> None:
        queue = bearer.data_packet_queue
        if queue is not None:
            self._outbox.release_sent(queue)

    def send_error(self, bearer: Any, op_code: int, handle: int, error: int) -> None:
        """Send an error response."""
        response = att.ATT_Error_Response(
            request_opcode_in_error=op_code, attribute_handle_in_error=handle, error_code=error
        )
        self.send_response(bearer, response)
