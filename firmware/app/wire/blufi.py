# BluFi frames (ESP-IDF's Wi-Fi provisioning protocol): one GATT write or notification is one frame.
#
#   type  fc  seq  len  | data (fc 0x10: u16 LE of bytes still to come, then content) | [u16 LE CRC]
#
# Link is one side of one connection without I/O: it is fed with received frames, and returns frames
# to send. Both the beacon and the client use it. It refuses what ESP-IDF refuses, with the same
# error codes, and also mixed types inside one fragmented message. It never buffers more than
# MAX_MESSAGE.

from . import const

# Types: subtype << 2 | kind, with kind 0 for control and 1 for data. These are the ones that a
# beacon uses; wire/blufi_names.py names all of them.
ACK = const(0x00)
SET_SECURITY = const(0x04)
SET_OPMODE = const(0x08)
CONNECT = const(0x0C)
GET_STATUS = const(0x14)
GET_VERSION = const(0x1C)
DISCONNECT_BLE = const(0x20)
GET_LIST = const(0x24)
NEGOTIATE = const(0x01)
STA_SSID = const(0x09)
STA_PASSWORD = const(0x0D)
REPORT = const(0x3D)
VERSION = const(0x41)
LIST = const(0x45)
ERROR = const(0x49)
CUSTOM = const(0x4D)

# Codes of an ERROR frame.
E_SEQUENCE = const(0)
E_CHECKSUM = const(1)
E_DECRYPT = const(2)
E_SECURITY = const(4)
E_MEMORY = const(5)
E_DH_PARAM = const(6)
E_FORMAT = const(9)
E_SCAN = const(11)
E_STATE = const(12)

MAX_MESSAGE = const(1024)  # bytes; announced before authentication, so it has to be bounded
MTU = const(23)  # until it is exchanged
PROTOCOL = b"\x01\x03"  # in a VERSION: 1.3, with which every Espressif app uses its first scheme

_ENCRYPTED = const(0x01)
_CHECKED = const(0x02)
_FROM_DEVICE = const(0x04)
_WANTS_ACK = const(0x08)
_FRAGMENT = const(0x10)
_QUEUE = const(8)


# Whether a message may be unsealed. All others need a session: no credentials are sent in the
# clear, and no network is joined or listed for a stranger.
def in_clear(type_):
    return type_ in (ACK, NEGOTIATE, ERROR, SET_SECURITY, GET_VERSION, DISCONNECT_BLE)


# CRC-16/GENIBUS, half a byte at a time: four bits times the polynomial need no reduction, so one
# multiplication replaces a table. crc16(b, crc16(a)) is crc16(a + b).
def crc16(data, crc=0):
    crc ^= 0xFFFF
    for byte in data:
        crc = (crc << 4 & 0xFFFF) ^ (crc >> 12 ^ byte >> 4) * 0x1021
        crc = (crc << 4 & 0xFFFF) ^ (crc >> 12 ^ byte & 15) * 0x1021
    return crc ^ 0xFFFF


# A frame is refused; `code` is the one for an ERROR frame.
class BlufiError(Exception):
    def __init__(self, code):
        super().__init__("blufi error %d" % code)
        self.code = code


# A complete message. `sealed` is true when each of its frames was encrypted.
class Message:
    def __init__(self, type_, data, sealed):
        self.type = type_
        self.data = data
        self.sealed = sealed


# The cipher before a key is agreed: it cannot decrypt, and does not encrypt.
class _Clear:
    tag = 0

    def open(self, header, data):
        return None

    def seal(self, header, data):
        return data


_CLEAR = _Clear()


# One side of a connection. receive() takes a frame and returns a complete message, None while there
# is none, or raises BlufiError. send() queues a message; transmit() returns the next frame to send,
# or None. A frame is made, and gets its sequence number, only when transmit() is called: frames
# have to be sent in that order, none may be dropped, and the acknowledgements that receive() queues
# never come between the fragments of a message.
class Link:
    def __init__(self, device):
        self._direction = _FROM_DEVICE if device else 0
        self.reset()

    # Called at every connection and disconnection: counters, buffers and keys belong to one link.
    def reset(self):
        self.mtu = MTU
        self._mode = 0
        self._cipher = _CLEAR
        self._rx_seq = self._tx_seq = 0
        self._drop()
        self._acks = []
        self._queue = []
        self._sent = 0

    # `mode` sets the protection of sent frames (a SET_SECURITY byte: high half for control frames,
    # low half for data; bit 0 checksum, bit 1 encryption). `cipher` also decrypts received frames.
    # It has seal(header, data) -> bytes, open(header, data) -> bytes or None, and `tag`, the number
    # of bytes that sealing adds.
    def protect(self, mode, cipher=None):
        if cipher:
            self._cipher = cipher
        self._mode = mode & 0x11 if self._cipher is _CLEAR else mode & 0x33

    def receive(self, frame):
        if len(frame) < 4:
            raise BlufiError(E_FORMAT)
        type_, fc, seq, size = frame[0], frame[1], frame[2], frame[3]
        if len(frame) != 4 + size + (2 if fc & _CHECKED else 0):
            raise BlufiError(E_FORMAT)
        if seq != self._rx_seq:
            raise BlufiError(E_SEQUENCE)
        self._rx_seq = seq + 1 & 0xFF
        data = bytes(frame[4 : 4 + size])
        if fc & _ENCRYPTED:
            data = self._cipher.open(bytes(frame[:4]), data)
            if data is None:
                raise BlufiError(E_DECRYPT)
        if fc & _CHECKED:
            crc = crc16(data, crc16(frame[2:4]))
            if frame[4 + size] | frame[5 + size] << 8 != crc:
                raise BlufiError(E_CHECKSUM)
        if fc & _WANTS_ACK:
            if len(self._acks) >= _QUEUE:
                raise BlufiError(E_MEMORY)
            self._acks.append(seq)
        return self._assemble(type_, fc, data)

    # The total that the first fragment announces has to be met exactly.
    def _assemble(self, type_, fc, data):
        sealed = bool(fc & _ENCRYPTED)
        buffer = self._buffer
        if fc & _FRAGMENT:
            if len(data) < 2:
                self._refuse(E_FORMAT)
            announced = data[0] | data[1] << 8
            data = data[2:]
            if buffer is None:
                if not 0 < announced <= MAX_MESSAGE:
                    self._refuse(E_FORMAT)
                buffer = self._buffer = bytearray()
                self._type = type_
                self._total = announced
                self._sealed = True
            elif not buffer:
                self._refuse(E_STATE)
        elif buffer is None:
            return None if type_ & 2 else Message(type_, data, sealed)
        if type_ != self._type:
            self._refuse(E_STATE)
        if len(buffer) + len(data) > self._total:
            self._refuse(E_FORMAT)
        buffer.extend(data)
        self._sealed = self._sealed and sealed
        if fc & _FRAGMENT:
            return None
        if len(buffer) != self._total:
            self._refuse(E_FORMAT)
        message = Message(type_, bytes(buffer), self._sealed)
        self._drop()
        return None if type_ & 2 else message

    def _drop(self):
        self._buffer = None
        self._type = self._total = 0
        self._sealed = False

    def _refuse(self, code):
        self._drop()
        raise BlufiError(code)

    # Queues a message. The queue is short: callers transmit the frames before they send more.
    def send(self, type_, data=b"", ack=False):
        if len(data) > MAX_MESSAGE or len(self._queue) >= _QUEUE:
            raise ValueError("blufi queue")
        self._queue.append((type_, data, ack))

    # Acknowledgements overtake whole messages, never the rest of one.
    def transmit(self):
        if self._acks and not self._sent:
            frame = self._frame(ACK, 0, bytes((self._acks[0],)))
            self._acks.pop(0)
            return frame
        if not self._queue:
            return None
        type_, data, ack = self._queue[0]
        fc = _WANTS_ACK if ack else 0
        room = self._room(type_)
        left = len(data) - self._sent
        if left <= room:
            frame = self._frame(type_, fc, data[self._sent :] if self._sent else data)
            self._queue.pop(0)
            self._sent = 0
            return frame
        part = data[self._sent : self._sent + room - 2]
        head = bytes((left & 0xFF, left >> 8))
        frame = self._frame(type_, fc | _FRAGMENT, head + part)
        self._sent += len(part)
        return frame

    # Bytes of data that fit into a frame. Espressif always reserves room for the checksum: a
    # fragment has min(MTU, 255) - 11 bytes, a last frame two more. Sealed frames without a checksum
    # exist only in EC1 sessions, and fill the packet.
    def _room(self, type_):
        protection = self._protection(type_)
        if protection == 2:
            return min(self.mtu - 3, 259) - 4 - self._cipher.tag
        return min(self.mtu, 255) - 9 - (self._cipher.tag if protection & 2 else 0)

    # Negotiation and errors always go in the clear, and an ACK is never encrypted.
    def _protection(self, type_):
        if type_ in (NEGOTIATE, ERROR):
            return 0
        if type_ & 1:
            return self._mode & 3
        return self._mode >> 4 & (1 if type_ == ACK else 3)

    # The counter moves only when the frame exists: one that failed must not leave a gap.
    def _frame(self, type_, fc, data):
        protection = self._protection(type_)
        encrypt = protection & 2
        size = len(data) + (self._cipher.tag if encrypt else 0)
        fc |= self._direction | (_ENCRYPTED if encrypt else 0)
        fc |= _CHECKED if protection & 1 else 0
        header = bytes((type_, fc, self._tx_seq, size))
        frame = header + (self._cipher.seal(header, data) if encrypt else data)
        if protection & 1:
            crc = crc16(data, crc16(header[2:]))
            frame += bytes((crc & 0xFF, crc >> 8))
        self._tx_seq = self._tx_seq + 1 & 0xFF
        return frame
