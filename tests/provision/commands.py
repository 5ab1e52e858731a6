"""A beacon within reach of the command line: by the plain radio space, or by BlueZ over it."""

import contextlib
from collections.abc import Iterator

from beacon_ota.virtual.bluez.daemon import VirtualBluez
from tests.provision import scene as scenes
from tests.provision.scene import SSID, scene

WIFI = ("--ssid", SSID, "--password-file", "wifi", "--search", "60")


@contextlib.contextmanager
def near(v1, server, monkeypatch, **options) -> Iterator[scenes.Scene]:
    """A beacon within reach of the command line, whose network leads to the real orchestrator."""
    with scene(v1, **options) as s:
        s.network.set_host("orchestrator.local", "127.0.0.1", int(server.url.rpartition(":")[2]))
        monkeypatch.setenv("BEACON_OTA_RADIO", s.space.spec)
        yield s


@contextlib.contextmanager
def near_bluez(v1, server, monkeypatch, **options) -> Iterator[tuple[scenes.Scene, VirtualBluez]]:
    """The same for a computer with BlueZ; the beacon sends its positioning frame, too."""
    settings = {"ibeacon": bytes(range(20)), **options.pop("settings", {})}
    with (
        near(v1, server, monkeypatch, settings=settings, **options) as s,
        VirtualBluez(s.space) as bluez,
    ):
        monkeypatch.delenv("BEACON_OTA_RADIO")
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bluez.address)
        s.wait(s.opened)
        yield s, bluez
