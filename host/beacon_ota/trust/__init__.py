"""Trust: signing keys, release manifests, encrypted releases.

The orchestrator uses :class:`Verifier`, :class:`ManifestClaims`, :class:`KeySet` and
:class:`Manifest`; ``image build`` takes :meth:`KeySet.to_json`. Signing is for the command line
only: no server process ever holds a private key.
"""

from beacon_ota.trust.keys import KeySet, PublicKey
from beacon_ota.trust.manifest import Manifest
from beacon_ota.trust.verifier import ManifestClaims, Situation, Verifier

__all__ = ["ManifestClaims", "KeySet", "Manifest", "PublicKey", "Situation", "Verifier"]
