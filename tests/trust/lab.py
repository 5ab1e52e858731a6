"""What the trust tests share: keys in memory, a release to sign, and both judges of an offer."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from beacon_ota.trust import KeySet, Manifest, PublicKey, Situation, Verifier, dsse
from beacon_ota.trust.signers import KeySigner
from beacon_ota.wire.manifest import Refused
from tests.firmware.interpreter import Interpreter
from tests.micropython import APP

NOW = 1_750_000_000
DAY = 86_400

RELEASE = Manifest(
    device_type="esp32c3",
    version="1.3.0",
    size=1_638_400,
    checksum="c5" * 32,
    core="0e" * 32,
    min_version="1.0.0",
    required=False,
    issued_at=NOW - DAY,
    expires_at=NOW + 365 * DAY,
)

BEACON = Situation(
    device_type="esp32c3", running="1.2.0", floor="1.2.0", now=NOW, slot_size=0x1C0000
)


class Key(KeySigner):
    """A signing key that lives as long as the tests."""

    def __init__(self, name: str, exponent: int = 65537):
        private = rsa.generate_private_key(exponent, 3072)
        public = PublicKey(private.public_key().public_numbers().n)
        super().__init__(name, public, private)

    def __repr__(self) -> str:
        return self.name


def offer(envelope: object, release: Manifest = RELEASE, **changes: object) -> dict[str, object]:
    """Return the offer of a release, as a poll answers it."""
    if isinstance(envelope, str):
        envelope = json.loads(envelope)
    return {
        "manifest": envelope,
        "checksum": release.checksum,
        "size": release.size,
        "version": release.version,
        "required": release.required,
    } | changes


def signed(signers: Iterable[dsse.Signer], release: Manifest = RELEASE, **changes: object) -> str:
    """Return the envelope of a release with some fields changed, as text."""
    return dsse.sign_payload(replace(release, **changes).payload(), signers)  # type: ignore[arg-type]


def host_verdict(offer: dict, beacon: Situation, trusted: KeySet | None) -> object:
    """Return what the host's implementation says: the manifest's fields, or a code."""
    try:
        return Verifier(trusted).judge_offer(offer, beacon).fields()
    except Refused as error:
        return error.code


SETUP = """
import asyncio, json
from ota import verify
from wire import manifest

def judge(offer, own, keys):
    try:
        return asyncio.run(verify.verify_manifest(json.loads(offer), keys=keys, **own))
    except manifest.Refused as error:
        return error.code
"""


class Device:
    """The firmware's verification in the real interpreter, with the C3's heap."""

    def __init__(self, folder: Path):
        self._folder = folder
        # asyncio is frozen into the interpreter.
        self._interpreter = Interpreter(SETUP, path=(APP, Path(".frozen")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._interpreter.__exit__()

    def verdict(self, offer: dict, beacon: Situation, trusted: KeySet | bytes | None) -> object:
        """Return what a beacon whose app holds ``trusted`` says: the fields, or a code."""
        file = self._folder / "keys.json"
        if trusted is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(trusted if isinstance(trusted, bytes) else trusted.to_json())
        return self.ask("judge({}, {}, {})", json.dumps(offer), beacon.__dict__, str(file))

    def ask(self, expression: str, *values: object) -> object:
        """Return the value of an expression of the device's interpreter."""
        return self._interpreter.ask(expression, *values)
