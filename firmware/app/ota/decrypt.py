# Encrypted releases: the image becomes plain on its way into flash. Imported only for such a
# release. Nothing here decides on trust: the checksum in the signed manifest is that of the
# plain image, so bytes that somebody changed on the way end as verify/checksum.

from binascii import unhexlify

from crypto.ctr import Ctr
from crypto.hkdf import hkdf
from micropython import const
from wire.refused import Refused

_INFO = const(b"beacon-ota release")
_MAGIC = const(0xE9)


# A function of (buffer, offset in the image) that decrypts in place. Both halves of a fleet's
# secret are used up by one release: its checksum is the salt, so no keystream serves twice.
def make_decrypter(fields, fleet_key):
    if not fleet_key or len(fleet_key) != 16:
        raise Refused("decrypt", "this beacon has no fleet key")
    secret = hkdf(unhexlify(fields["checksum"]), fleet_key, _INFO, 32)
    ctr = Ctr(secret[:16], secret[16:])

    def decrypt(buf, offset):
        ctr.apply(buf, offset)
        # Every image starts with the same byte: a wrong key is seen before flash is written.
        if not offset and buf[0] != _MAGIC:
            raise Refused("decrypt", "not an image: another fleet's key?")

    return decrypt
