"""Bringing beacons online over Bluetooth: the client's side of BluFi."""
