"""Virtual beacons: the beacon's own code, run from a real flash image on any PC.

:class:`~beacon_ota.virtual.beacon.VirtualBeacon` plays the chip, the MicroPython
interpreter (unix port) runs the code. ``docs/virtual-beacon.md`` tells how to use it.
"""
