"""The host's side of a radio space that goes away."""

import asyncio
import logging

import pytest
from bumble import hci
from bumble.transport.common import TransportLostError

from beacon_ota.virtual.radio.transport import RadioHost


class Silent:
    """Takes commands, and answers none."""

    def on_packet(self, packet: bytes) -> None:
        pass


def test_a_space_that_goes_fails_the_command_and_logs_no_traceback(caplog):
    async def talk() -> None:
        host = RadioHost(None, Silent())
        waiting = asyncio.ensure_future(host.send_command(hci.HCI_Reset_Command()))
        while host.pending_response is None:  # noqa: ASYNC110 - bumble sets no event
            await asyncio.sleep(0)
        host.on_transport_lost()
        with pytest.raises(TransportLostError):
            await waiting

    with caplog.at_level(logging.ERROR):
        asyncio.run(talk())
    assert not caplog.records


def test_an_answer_that_comes_when_its_command_was_cancelled_is_nobodys():
    async def talk() -> None:
        host = RadioHost(None, Silent())
        waiting = asyncio.ensure_future(host.send_command(hci.HCI_Reset_Command()))
        while host.pending_response is None:  # noqa: ASYNC110 - bumble sets no event
            await asyncio.sleep(0)
        waiting.cancel()
        host.on_packet(b"\x04\x0e\x04\x01\x03\x0c\x00")  # command complete: reset
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(talk())
