# Names of BluFi's numbers for messages to people, captures and logs. A beacon never loads this
# module.

TYPES = {
    0x00: "ack",
    0x04: "set_security",
    0x08: "set_opmode",
    0x0C: "connect",
    0x10: "disconnect",
    0x14: "get_status",
    0x18: "deauthenticate",
    0x1C: "get_version",
    0x20: "disconnect_ble",
    0x24: "get_list",
    0x01: "negotiate",
    0x05: "sta_bssid",
    0x09: "sta_ssid",
    0x0D: "sta_password",
    0x11: "ap_ssid",
    0x15: "ap_password",
    0x19: "ap_connections",
    0x1D: "ap_auth_mode",
    0x21: "ap_channel",
    0x25: "username",
    0x29: "ca_certificate",
    0x2D: "client_certificate",
    0x31: "server_certificate",
    0x35: "client_key",
    0x39: "server_key",
    0x3D: "report",
    0x41: "version",
    0x45: "list",
    0x49: "error",
    0x4D: "custom",
}

ERRORS = (
    "sequence",
    "checksum",
    "decrypt",
    "encrypt",
    "security",
    "memory",
    "dh_param",
    "read_param",
    "public",
    "format",
    "md5",
    "scan",
    "state",
    "sha256",
)


def type_name(number):
    return TYPES.get(number, "type_%02x" % number)


def error_name(code):
    return ERRORS[code] if code < len(ERRORS) else "error_%d" % code


# The driver's reasons for a network that could not be joined: wlan.status(), a report's reason.
REASONS = {
    2: "authentication_expired",
    15: "wrong_password",
    200: "beacon_timeout",
    201: "no_such_network",
    202: "wrong_password",
    203: "association_failed",
    204: "handshake_timeout",
    205: "connection_failed",
    210: "incompatible_security",
    211: "weak_security",
    212: "weak_signal",
    255: "unknown",
}


def reason_name(reason):
    return REASONS.get(reason, "reason_%d" % reason)
