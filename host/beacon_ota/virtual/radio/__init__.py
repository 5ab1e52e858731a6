"""The virtual radio: a simulated radio space that virtual beacons and bleak share.

Import the parts by module; this package imports nothing, so that the command line starts fast.
"""
