"""The virtual radio: a room in which virtual beacons and bleak hear each other.

Import the parts by module; this package imports nothing, so that the command line starts fast.
"""
