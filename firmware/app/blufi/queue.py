# Somebody new writes to the provisioning service: a place in the line of those who wait, or what a
# client hears while provisioning is closed.

from micropython import const

_GOODBYE = const(200)  # ms for the answer to get out
_LINE = const(300_000)  # ms that nobody waits: at most two others' shares, and what serves him

# Ready made: ERROR "security", and to EC1 "closed".
_CLOSED = const(b"\x49\x04\x00\x01\x04")
_CLOSED_EC1 = const(b"\x01\x04\x00\x05\xec\x01\x7f\x21\x07")


# The list for the frames of who has a place now, None for whom there is none.
def enqueue(server, link, data, is_open):
    radio = server.beacon.radio
    if not is_open:
        _refuse_client(radio, link, server.tx_handle, data)
    elif server.client_proved and not server.client_gone:
        radio.disconnect(link)
    else:
        frames = []
        server.queue.append((link, frames))
        radio.set_idle_timeout(link, _LINE, _LINE, _LINE)
        return frames
    return None


def _refuse_client(radio, link, handle, frame):
    at = 6 if len(frame) > 1 and frame[1] & 0x10 else 4
    ours = frame[:1] == b"\x01" and frame[at : at + 1] == b"\xec"
    try:
        radio.notify(link, handle, _CLOSED_EC1 if ours else _CLOSED)
    except OSError as error:
        print("blufi:", error)
    radio.set_idle_timeout(link, _GOODBYE, 0)
