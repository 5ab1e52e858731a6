# The codecs and rules that beacons and the host share: what crosses between them is built and read
# here.

try:
    from micropython import const
except ImportError:  # CPython

    def const(value):
        return value
