# The queue of provisioning clients: a new client gets a place, or an answer that provisioning is
# closed.

from micropython import const

_GOODBYE = const(200)  # ms for the answer to get out
_LINE = const(300_000)  # ms; no client waits longer for its turn

# Complete frames: ERROR "security"; for an EC1 client, ABORT "closed".
_CLOSED = const(b"\x49\x04\x00\x01\x04")
_CLOSED_EC1 = const(b"\x01\x04\x00\x05\xec\x01\x7f\x21\x07")


# Returns the list for the frames of a client that has a place now, None when it gets none.
def add(server, link, data, is_open):
    radio = server.beacon.radio
    if not is_open:
        _refuse(radio, link, server.tx_handle, data)
    elif server.client_proved and not server.client_gone:
        radio.disconnect(link)
    else:
        frames = []
        server.queue.append((link, frames))
        radio.set_idle_timeout(link, _LINE, _LINE, _LINE)
        return frames
    return None


def _refuse(radio, link, handle, frame):
    at = 6 if len(frame) > 1 and frame[1] & 0x10 else 4
    is_ec1 = frame[:1] == b"\x01" and frame[at : at + 1] == b"\xec"
    try:
        radio.notify(link, handle, _CLOSED_EC1 if is_ec1 else _CLOSED)
    except OSError as error:
        print("blufi:", error)
    radio.set_idle_timeout(link, _GOODBYE, 0)
