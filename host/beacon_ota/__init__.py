"""Over-the-air updates for fleets of MicroPython beacons."""

__version__ = "0.1.0"
