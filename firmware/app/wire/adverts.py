# Builds the AD structures of a beacon's advertisements; wire/scan.py reads them.

from struct import pack

from . import const

MAX_PAYLOAD = 31
MAX_VERSION = 20  # bytes of a version in a scan response, beside the progress

# Bits of a status.
PROVISIONED = 1
TRIAL = 2  # the running release is not confirmed
INSECURE = 4  # a build that accepts unsigned releases
LOCKED = 8  # too many wrong PINs
PRESSED = 16  # its button is pressed: after ten seconds everything is erased
OPEN = 32  # it can be provisioned now
UPDATING = 64  # the progress of an update stands beside the status

FLAGS = b"\x02\x01\x06"  # general discoverable, no BR/EDR
_MANUFACTURER = const(0xFF)
_APPLE = const(b"\x4c\x00\x02\x15")  # company 0x004C, iBeacon, 21 bytes follow
_PROGRESS = const(b"\x59\x00")  # company 0x0059
_SERVICES = const(b"\x03\x03\xff\xff")  # complete list of 16-bit services: BluFi
_NAME = const(0x09)
_SERVICE_DATA = const(0x16)
_STATUS = const(b"\xff\xff\xbe")  # company 0xFFFF, for tests and private use
_EC1 = const(b"\xff\xff\xec\x01")  # version 1


# One AD structure: length, kind, data.
def build_structure(kind, data):
    return bytes((len(data) + 1, kind)) + data


# Advertising data with an iBeacon frame: `identity` is UUID, major and minor (20 bytes), `power`
# the level in dBm measured at one metre.
def build_ibeacon(identity, power):
    return FLAGS + build_structure(_MANUFACTURER, _APPLE + identity + pack("b", power))


# Scan response with an update's progress: percent, 0xFE failed, 0xFF rebooting.
def build_progress(value):
    return build_structure(_MANUFACTURER, _PROGRESS + bytes((value,)))


# The status for the scan response: flags, and as much of the release's version as fits. It is not
# service data, because computers merge both packets and keep one value per service and per company.
def build_status(flags, version):
    return build_structure(
        _MANUFACTURER, _STATUS + bytes((flags,)) + version.encode()[:MAX_VERSION]
    )


# The name under which a beacon is provisioned, which also identifies it in the key exchange. It
# ends with the last three bytes of the address; Espressif's apps look for the prefix.
def device_name(address):
    return b"BLUFI_%02X%02X%02X" % (address[-3], address[-2], address[-1])


# Advertising data of a beacon that can be provisioned; `suites` has bit 0 for ECDH, bit 1 for
# SPAKE2.
def build_provisionable(name, suites):
    return (
        FLAGS
        + _SERVICES
        + build_structure(_NAME, name)
        + build_structure(_SERVICE_DATA, _EC1 + bytes((suites,)))
    )
