"""Signers: a key file opened with its password, or a program that holds the key.

The program's side of the contract (a smart card, an HSM, an agent, a colleague's script):

* It is started without arguments, with ``BEACON_OTA_KEY`` (the key's name) and
  ``BEACON_OTA_KEYID`` in its environment.
* It reads the bytes to sign from stdin until they end: the message itself, not a hash of it.
* It writes the signature to stdout, 384 raw bytes: RSA-3072, PSS, SHA-256, MGF1 with SHA-256,
  salt of 32 bytes. It exits with 0.
* For a refusal it exits with anything else; its stderr is shown.
* It has 120 s, so that somebody can touch a token.

``openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32 -sign KEY``
is such a program. What it returns is verified before it is used.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from beacon_ota import lifeline
from beacon_ota.errors import DeniedError, ReachError
from beacon_ota.trust.keys import PSS, PublicKey

PROGRAM_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class KeySigner:
    """Signs with a private key in memory."""

    name: str
    public: PublicKey
    key: rsa.RSAPrivateKey

    def sign(self, data: bytes) -> bytes:
        """Return the signature of ``data``."""
        return self.key.sign(data, PSS, hashes.SHA256())


@dataclass(frozen=True)
class ProgramSigner:
    """Lets a program sign."""

    name: str
    public: PublicKey
    program: Path
    timeout_s: float = PROGRAM_TIMEOUT_S

    def sign(self, data: bytes) -> bytes:
        """Return what the program wrote; whether it is a signature, the caller checks.

        Raises:
            ReachError: ``signer_missing`` (cannot be started), ``signer_timeout``.
            DeniedError: ``signer_refused``, it ended with an error; its words in the message.
        """
        names = {"BEACON_OTA_KEY": self.name, "BEACON_OTA_KEYID": self.public.keyid}
        try:
            done = lifeline.run(
                [str(self.program)],
                input=data,
                capture_output=True,
                timeout=self.timeout_s,
                env=os.environ | names,
                check=False,
            )
        except OSError as error:
            raise ReachError(
                "signer_missing", f"The signer {self.program} cannot be started: {error.strerror}."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ReachError(
                "signer_timeout",
                f"The signer {self.program} did not answer within {self.timeout_s:.0f} s.",
            ) from error
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-300:]
            raise DeniedError(
                "signer_refused",
                f"The signer {self.program} refused: {words or 'no reason given'}",
                found=f"exit {done.returncode}",
                expected="exit 0",
            )
        return done.stdout
