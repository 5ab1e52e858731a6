# Builds the messages of a reader to a door (wire/access.py), which no beacon loads.

from .access import PROOF, REQUEST, SECRET


def build_request(ident):
    return bytes((REQUEST,)) + ident


# `mac` is the HMAC-SHA256 of the door's challenge.
def build_proof(mac):
    return bytes((PROOF,)) + mac[:SECRET]
