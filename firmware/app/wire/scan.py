# Reads what beacons advertise (wire/adverts.py writes it). The air is full of other people's
# payloads: anything that is not exactly ours is passed over, and nothing raises.

_UUID16 = 0xFFFF
_APPLE = 0x004C
_COMPANY = 0x0059
_NOBODY = 0xFFFF


# The AD structures of a payload as (kind, data), up to the first that is cut off or empty.
def split_structures(payload):
    found = []
    at = 0
    while at + 1 < len(payload):
        end = at + 1 + payload[at]
        if payload[at] == 0 or end > len(payload):
            break
        found.append((payload[at + 1], bytes(payload[at + 2 : end])))
        at = end
    return found


# What is ours in some payloads (advertising data, scan response), as manufacturer() and service()
# name it, with `name` and `blufi` besides.
def read_payloads(*payloads):
    found = {}
    for payload in payloads:
        for kind, data in split_structures(payload):
            if kind == 0xFF and len(data) >= 2:
                found.update(parse_manufacturer(data[0] | data[1] << 8, data[2:]))
            elif kind == 0x16 and len(data) >= 2:
                found.update(parse_service_data(data[0] | data[1] << 8, data[2:]))
            elif kind in (0x02, 0x03):
                if (0xFF, 0xFF) in [tuple(data[i : i + 2]) for i in range(0, len(data), 2)]:
                    found["blufi"] = True
            elif kind in (0x08, 0x09):
                found["name"] = data
    return found


# Manufacturer data: `ibeacon` (UUID, major and minor, 20 bytes) with `power` in dBm, `progress`
# (0-100 percent, 0xFE failed, 0xFF rebooting), or a status's `flags` and `version`.
def parse_manufacturer(company, data):
    if company == _APPLE and len(data) == 23 and data[0] == 0x02 and data[1] == 0x15:
        power = data[22]
        return {"ibeacon": data[2:22], "power": power - 256 if power > 127 else power}
    if company == _COMPANY and len(data) == 1 and (data[0] <= 100 or data[0] >= 0xFE):
        return {"progress": data[0]}
    if company == _NOBODY and len(data) >= 2 and data[0] == 0xBE:
        try:
            return {"flags": data[1], "version": data[2:].decode()}
        except ValueError:
            return {}
    return {}


# Service data: `suites` of EC1 version 1.
def parse_service_data(uuid16, data):
    if uuid16 == _UUID16 and len(data) == 3 and data[0] == 0xEC and data[1] == 1:
        return {"suites": data[2]}
    return {}
