"""Trust: signing keys, release manifests, encrypted releases.

The orchestrator uses :class:`Verifier`, :class:`Facts`, :class:`KeySet` and :class:`Manifest`;
``image build`` takes :meth:`KeySet.to_json`. Signing is for the command line only: nothing that
runs a server ever holds a private key.
"""

from beacon_ota.trust.keys import KeySet, PublicKey
from beacon_ota.trust.manifest import Manifest
from beacon_ota.trust.verifier import Facts, Situation, Verifier

__all__ = ["Facts", "KeySet", "Manifest", "PublicKey", "Situation", "Verifier"]
