"""The bus: who is on it, whom calls reach, and what happens when the service goes."""

import asyncio

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

from beacon_ota.virtual.bluez.bus import BLUEZ, BUS, CallError, SystemBus
from tests.virtual.radio.beacons import until


class Echo:
    """A service that says who has asked, and fails when it is told to."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.hold = asyncio.Event()

    async def answer(self, sender, call):
        if call.member == "Fail":
            raise CallError("org.bluez.Error.Failed", "as asked")
        if call.member == "Hold":
            await self.hold.wait()
        return "s", [sender]

    def on_peer_gone(self, sender) -> None:
        self.gone.append(sender)


def call(member: str, destination: str = BLUEZ, **more) -> Message:
    return Message(destination=destination, path="/", interface="a.b", member=member, **more)


def test_calls_signals_and_ends(tmp_path):
    async def body() -> None:
        bus = SystemBus(tmp_path / "bus")
        await bus.open()
        address = f"unix:path={tmp_path / 'bus'}"
        first = await MessageBus(bus_address=address).connect()
        second = await MessageBus(bus_address=address).connect()
        assert first.unique_name != second.unique_name
        nobody = await first.call(call("Who"))
        assert nobody.error_name == "org.freedesktop.DBus.Error.ServiceUnknown"
        heard: list[Message] = []
        second.add_message_handler(
            lambda one: heard.append(one) if one.message_type is MessageType.SIGNAL else None
        )
        rule = {"signature": "s", "body": ["type='signal'"]}
        await second.call(call("AddMatch", BUS, **rule))
        service = Echo()
        bus.set_service(service)
        assert (await first.call(call("Who"))).body == [first.unique_name]
        failed = await first.call(call("Fail"))
        assert (failed.error_name, failed.body) == ("org.bluez.Error.Failed", ["as asked"])
        # The service ends while a call waits, and everybody who listens is told.
        waiting = asyncio.ensure_future(first.call(call("Hold")))
        await first.call(call("Who"))
        bus.set_service(None)
        service.hold.set()
        assert (await waiting).error_name == "org.freedesktop.DBus.Error.NoReply"
        await second.call(call("NameHasOwner", BUS, signature="s", body=[BLUEZ]))
        owners = [one.body for one in heard if one.member == "NameOwnerChanged"]
        assert owners == [[BLUEZ, "", ":1.0"], [BLUEZ, ":1.0", ""]]
        bus.set_service(service)
        gone = first.unique_name
        first.disconnect()
        await until(lambda: service.gone == [gone])
        bus.close()
        await asyncio.wait({asyncio.ensure_future(second.wait_for_disconnect())}, timeout=10)
        assert not second.connected and not (tmp_path / "bus").exists()

    asyncio.run(asyncio.wait_for(body(), 60))
