"""Virtual beacons: the code of the beacon, run from a real flash image on any PC.

:class:`~beacon_ota.virtual.beacon.VirtualBeacon` models the chip, the MicroPython interpreter
(unix port) runs the code. ``docs/virtual-beacon.md`` describes its use.
"""
