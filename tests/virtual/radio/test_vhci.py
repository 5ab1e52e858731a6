"""The backend without a radio: beacon code can advertise, and hears what the test says."""

from beacon_ota.virtual.radio.vhci import RadiolessBackend
from beacon_ota.virtual.reactor import Reactor
from tests.virtual import rig

BLE = """
import bluetooth, time
ble = bluetooth.BLE()
def t(f, *a, **k):
    try:
        print(f(*a, **k))
    except Exception as e:
        print(type(e).__name__, e.args[0] if e.args else '')
"""


def test_advertising_is_seen():
    main = BLE + (
        "ble.active(True)\n"
        "ble.config(gap_name='beacon')\n"
        "ble.gap_advertise(250000, b'\\x02\\x01\\x06', resp_data=b'\\x03\\xff\\x59\\x00')\n"
        "print(ble.config('gap_name'), ble.config('mac')[0], ble.active())\n"
    )
    with rig.running(main) as beacon:
        assert rig.finish(beacon) == "b'beacon' 0 True\n"
        found = beacon.bluetooth
        assert isinstance(found, RadiolessBackend)
        assert found.advertising == 250000
        assert found.data == b"\x02\x01\x06"
        assert found.response == b"\x03\xff\x59\x00"
        beacon.power_cut()
        assert found.advertising is None


def test_refusals():
    lines = rig.printed(
        BLE + "t(ble.gap_advertise, 100000)\nt(ble.config, 'mac')\nt(ble.config, mtu=100)\n"
        "ble.active(True)\n"
        "t(ble.gap_advertise, 100000, bytes(32))\n"
        "t(ble.config, mtu=22)\nt(ble.config, mtu=528)\nt(ble.config, 'rxbuf')\n"
        "t(ble.gatts_read, 99)\nt(ble.gatts_notify, 0, 99)\n"
    )
    assert lines == [
        "OSError 19",
        "OSError 19",
        "OSError 19",
        "OSError -18",
        "OSError 22",
        "OSError 22",
        "ValueError unknown config param",
        "OSError 22",
        "OSError 128",
    ]


def test_attributes_keep_values():
    lines = rig.printed(
        BLE + "ble.active(True)\n"
        "s = (bluetooth.UUID(0xffff), ((bluetooth.UUID(0xff01), bluetooth.FLAG_WRITE),\n"
        "    (bluetooth.UUID(0xff02), bluetooth.FLAG_NOTIFY)))\n"
        "((a, b),) = ble.gatts_register_services((s,))\n"
        "print(a != b, ble.gatts_read(a))\n"
        "ble.gatts_write(a, b'some value')\nprint(ble.gatts_read(a), ble.gatts_read(b))\n"
    )
    assert lines == ["True b''", "b'some value' b''"]


def test_events_reach_the_handler_and_bring_its_answer():
    main = BLE + (
        "def irq(event, data):\n"
        "    print(event, [bytes(x) if isinstance(x, memoryview) else x for x in data])\n"
        "    if event == 99:\n        raise ValueError('in irq')\n"
        "    return event * 2\n"
        "ble.active(True)\nble.irq(irq)\nprint('ready')\n"
        "while True:\n    pass\n"
    )
    with rig.running(main) as beacon:
        beacon.wait_for(lambda: "ready\n" in beacon.console, rig.WAIT)
        reactor = Reactor.shared()
        assert reactor.run(beacon.port.call_handler(4, 1, 16), rig.WAIT) == 8
        reactor.call(beacon.port.send_event, 1, 0, 0, b"\x01\x02\x03\x04\x05\x06")
        beacon.wait_for(lambda: "1 [0, 0, b'\\x01" in beacon.console, rig.WAIT)
        assert reactor.run(beacon.port.call_handler(99), rig.WAIT) is None
        assert (
            reactor.run(beacon.port.call_handler(4, 1, 16), rig.WAIT) is None
        )  # the handler is gone
        beacon.wait_for(lambda: "ValueError: in irq" in beacon.console, rig.WAIT)
        beacon.power_cut()
        assert reactor.run(beacon.port.call_handler(4), rig.WAIT) is None
        assert reactor.call(beacon.port.send_event, 4) is False
