"""What a beacon does beside updates: Bluetooth, networks, journal, supervision."""

import asyncio

from beacon_ota import paths
from beacon_ota.virtual import supervisor
from beacon_ota.virtual.net.wlan import WlanStation
from beacon_ota.virtual.radio.vhci import RadiolessBackend
from tests.firmware.beacons import PASSWORD, SSID, bench, make


class Missing(RadiolessBackend):
    """A chip whose Bluetooth cannot be activated, from the beginning or from some time on."""

    gone = True

    def _active(self, on):
        if on and self.gone:
            raise OSError(19, "ENODEV")
        return super()._active(on)


class Hanging(RadiolessBackend):
    """A chip on which activation never returns."""

    def _active(self, on):
        if not on:
            return False
        return asyncio.get_running_loop().create_future()


def test_a_board_without_bluetooth_is_updated(v1, v2):
    with bench(v1, bluetooth=Missing()) as b:
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert [e for _, e in b.causes()] == ["reset", None]
        assert b.beacon.setting("ble") == 0
        entries = [e for e in b.server.journal() if e[2] == "ble"]
        assert [e[3] for e in entries] == ["failed"], "said once, at power-on"


def test_a_board_whose_bluetooth_hangs_is_updated(v1, v2):
    """The watchdog ends the first attempt; from then on it goes without."""
    with bench(v1, bluetooth=Hanging(), scale=40) as b:
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert [e for _, e in b.causes()] == ["watchdog", "reset", None]
        assert b.beacon.setting("ble") == 1
        assert ["ble", "skipped"] in [e[2:4] for e in b.server.journal()]


def test_a_chip_that_calls_every_reset_a_power_on(v1, v2, monkeypatch):
    """Bluetooth that hangs there is tried twice, and the beacon is updated all the same."""
    monkeypatch.setattr(supervisor, "CAUSES", dict.fromkeys(supervisor.CAUSES, 1))
    with bench(v1, bluetooth=Hanging(), scale=40, policy={"healthy_s": 3600}) as b:
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert [e for _, e in b.causes()] == ["watchdog", "watchdog", "reset", None]
        assert b.beacon.setting("ble") == 3
    with bench(v1, bluetooth=Hanging(), scale=40, settings={"ble": 3}) as b:
        b.wait(lambda: b.beacon.setting("ble") == 1, 60, "another chance at the next power-on")
        assert [e for _, e in b.causes()] == [None]


def test_bluetooth_that_is_left_alone(v1, v2):
    """By policy: nothing hangs, and no release is refused for it, though it worked before."""
    with bench(v1, bluetooth=Hanging(), settings={"ble": 2}, policy={"bluetooth": 0}) as b:
        b.server.image, b.server.offering = v2, True
        b.reported("success")
        assert [e for _, e in b.causes()] == ["reset", None]
        assert not any(e[2] == "ble" for e in b.server.journal())


def test_a_button_that_was_never_released(v1):
    """A pin that reads low from the start is nobody's wish to forget everything."""
    with bench(v1, power=False, scale=20) as b:
        b.beacon.press()
        b.beacon.power_on()
        b.wait(lambda: b.beacon.clock.now() > 40)
        assert [e for _, e in b.causes()] == [None]
        assert b.beacon.setting("wifi_ssid") and b.polled("1.0.0")


def test_the_button_unlocks_nothing_a_week_after_power_on(v1):
    """The chip's ticks have come round by then: a time that is long past looks like one to come."""
    with bench(v1, scale=20, settings={"pin_fail": 10}) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.beacon.skip_time(20)
        later(b, 5)
        b.beacon.skip_time(7 * 86400)
        b.beacon.press()
        later(b, 4)
        b.beacon.release()
        later(b, 2)
        assert b.beacon.setting("pin_fail") == 10


def later(b, seconds: float) -> None:
    """Let the beacon run for so many of its seconds."""
    end = b.beacon.clock.now() + seconds
    b.wait(lambda: b.beacon.clock.now() > end)


def test_a_button_on_a_pin_that_is_none(v1):
    with bench(v1, policy={"button_pin": 15}) as b:
        b.wait(lambda: ["button", "no_pin"] in [e[2:4] for e in b.server.journal()])
        assert [e for _, e in b.causes()] == [None]


def test_what_the_driver_said_of_another_network(v1, monkeypatch):
    """The refusal of the first network still stands while the second one is being joined."""
    settings = {"wifi_ssid": b"gone", "wifi2_ssid": SSID.encode(), "wifi2_pass": PASSWORD.encode()}
    leave = WlanStation._set_disconnected
    monkeypatch.setattr(
        WlanStation,
        "_set_disconnected",
        lambda wlan, reason: leave(wlan, wlan._reason if reason == 8 else reason),
    )
    asked = []
    connect = WlanStation._connect
    monkeypatch.setattr(
        WlanStation,
        "_connect",
        lambda wlan, *args: [asked.append(args[0]), connect(wlan, *args)][1],
    )
    with bench(v1, settings=settings, power=False, policy={"join_s": 60}) as b:
        b.network.join_time = 8
        b.beacon.power_on()
        b.wait(lambda: b.polled("1.0.0"))
        # Without a name the driver is asked whether its attempt is over.
        assert [one for one in asked if one is not None] == [b"gone", SSID.encode()]


def test_bluetooth_that_worked_once_has_to_work(v1, v2):
    """The new release finds none on a board that has it: not fit, and rolled back."""
    air = Missing()
    air.gone = False
    with bench(v1, scale=40, bluetooth=air) as b:
        b.wait(lambda: b.beacon.setting("ble") == 2)
        b.wait(lambda: b.polled("1.0.0"))
        b.server.image, b.server.offering = v2, True
        b.wait(lambda: b.server.last("rebooting"))
        air.gone = True
        back = b.reported("rolled_back")
        assert (back["code"], back["detail"]) == ("self_test", "bluetooth")


def test_the_journal_is_delivered_once(v1, small_core):
    """Entries of several boots, each reported and acknowledged one time."""
    with bench(v1, settings={"journal3": b'[3, 1700000000, "wifi", "no_ap", "earlier"]'}) as b:
        b.wait(lambda: b.server.journal())
        b.wait(lambda: b.beacon.setting("jrn_ack") == 3)
        b.beacon.power_cut()
        b.server.polls.clear()
        before = len(b.server.requests)
        b.beacon.power_on()
        b.wait(lambda: len(b.server.requests) > before + 3)
        assert b.server.journal() == [[3, 1700000000, "wifi", "no_ap", "earlier"]]


def test_a_network_that_is_away_for_long(v1):
    with bench(v1, scale=40) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.network.points[0].visible = False
        b.beacon.drop_wifi()
        begun = b.beacon.clock.now()
        b.wait(lambda: b.beacon.clock.now() > begun + 40)
        b.network.points[0].visible = True
        before = len(b.server.requests)
        b.wait(lambda: len(b.server.requests) > before)
        b.wait(lambda: ["wifi", "no_ap"] in [e[2:4] for e in b.server.journal()])
        assert [e for _, e in b.causes()] == [None]


def test_name_servers_that_do_not_answer(v1):
    """Nothing blocks for long, nothing resets, and it goes on when they are back."""
    with bench(v1, scale=20, power=False) as b:
        b.beacon.link.faults.names = False
        b.beacon.power_on()
        b.wait(lambda: b.beacon.clock.now() > 60)
        assert not b.server.requests
        b.beacon.link.faults.names = True
        b.wait(lambda: b.polled("1.0.0"))
        assert [e for _, e in b.causes()] == [None]


def test_an_orchestrator_with_another_key(v1):
    """Nothing from it changes anything: not the clock, not the journal's acknowledgement."""
    with bench(v1) as b:
        b.server.keys = {"beacon-1": bytes(32)}
        b.wait(lambda: len(b.server.refused) > 2)
        assert set(b.server.refused) == {"bad_mac"}
        assert b.beacon.clock.unix < 1_000_000_000
        b.server.keys = {"beacon-1": bytes(range(32))}
        b.wait(lambda: b.polled("1.0.0"))


def test_a_task_that_dies_is_started_again(small_core):
    main = "net/wifi.py"
    real = paths.data_path("firmware", "app", main).read_text()
    dying = real.replace(
        "    async def run(self):\n",
        "    async def run(self):\n"
        "        if not self._store.number('died'):\n"
        "            self._store.put('died', 1)\n"
        "            raise RuntimeError('dies young')\n",
        1,
    )
    assert dying != real
    with bench(make(small_core, "1.0.0", {main: dying})) as b:
        b.wait(lambda: b.server.journal())
        [entry] = b.server.journal()
        assert entry[2:4] == ["task", "wifi"] and "dies young" in entry[4]
        assert "net.wifi:" in entry[4], "and where"
        assert [e for _, e in b.causes()] == [None]


def test_an_update_needs_no_full_heap(v1, v2):
    """What the chip has left once WiFi is up is enough, with objects twice its size."""
    with bench(v1, heap=148_000) as b:
        b.server.image, b.server.offering = v2, True
        b.reported("success")


def test_an_update_that_finds_no_memory(small_core, v2):
    """Something has crowded the heap: reported, and the next attempt has a fresh one."""
    crowded = """
import asyncio
import real_main
from esp32 import NVS
async def crowd(blocks=[]):
    await asyncio.sleep(3)
    try:
        while True:
            blocks.append(bytearray(2048))
    except MemoryError:
        blocks[:] = blocks[::2]
class Beacon(real_main.Beacon):
    async def run(self):
        if not self.store.number("crowded"):
            self.store.put("crowded", 1)
            asyncio.create_task(crowd())
        await super().run()
def run():
    asyncio.run(Beacon().run())
"""
    real = paths.data_path("firmware", "app", "main.py").read_text()
    with bench(make(small_core, "1.0.0", {"main.py": crowded, "real_main.py": real})) as b:
        b.wait(lambda: b.server.count("/firmwares/latest") > 1)
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("boot", "crash")
        assert failed["detail"].startswith("MemoryError")
        b.reported("success")
        assert [slot for slot, _ in b.causes()] == ["ota_0", "ota_0", "ota_1"]


def test_settings_that_are_full(v1, v2):
    """NVS takes nothing more: no attempt begins, the beacon says why, and goes on running."""
    full = {f"fill{i}": bytes(3900) for i in range(2)} | {"filling": bytes(2300)}
    with bench(v1, settings=full | {"ble": 2}) as b:
        b.server.image, b.server.offering = v2, True
        failed = b.reported("failed")
        assert (failed["stage"], failed["code"]) == ("flash", "write"), failed
        assert "NOT_ENOUGH_SPACE" in failed["detail"]
        b.wait(lambda: b.server.statuses().count("failed") > 2)
        assert [e for _, e in b.causes()] == [None]
