"""A folder of signing keys.

For each key ``NAME.json`` (its description), ``NAME.pub.pem`` and, unless a program holds it,
``NAME.key.pem``: PKCS#8, encrypted under a password with scrypt. The folder has nothing but files,
so a copy of it is a backup.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from beacon_ota.errors import InputError, UsageError
from beacon_ota.trust import files, pkcs8
from beacon_ota.trust.keys import BITS, EXPONENT, KeySet, PublicKey
from beacon_ota.trust.signers import KeySigner, ProgramSigner

MIN_PASSWORD = 8
MAX_FILE = 16384
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class KeyEntry:
    """A key of the folder."""

    name: str
    keyid: str
    created: str
    """ISO 8601, UTC."""
    program: str | None = None
    """The external signer that holds the private key; None when it is in a file here."""
    retired: str | None = None
    """When it was rotated out, ISO 8601; None while new apps should trust it."""
    replaced_by: str | None = None
    """Name of the key that came instead."""

    @property
    def kind(self) -> str:
        """``file`` or ``program``: where the private key is."""
        return "program" if self.program else "file"


def default_folder() -> Path:
    """Return the folder used when none is named.

    ``BEACON_OTA_KEYRING``, else ``./keys`` when it is a keyring, else ``keys`` in the user's
    configuration folder.
    """
    named = os.environ.get("BEACON_OTA_KEYRING")
    if named:
        return Path(named)
    here = Path("keys")
    if any(here.glob("*.pub.pem")):
        return here
    import typer

    return Path(typer.get_app_dir("beacon-ota")) / "keys"


class Keyring:
    """The keys in a folder, which appears with the first key.

    Raises (all methods):
        UsageError: ``key_name``, ``key_unknown``, ``key_exists``, ``key_retired``.
        InputError: ``keyring_damaged``, a file is not what it should be.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def new(self, name: str, password: str) -> KeyEntry:
        """Make a key and write it, encrypted; under half a second.

        Raises:
            UsageError: ``key_password_short``.
        """
        check_password(password)
        self._check_free(name)
        key = rsa.generate_private_key(EXPONENT, BITS)
        sealed = pkcs8.encrypt_key(key, password)
        self._prepare_folder()
        # The private key first: an entry without its key would be worse than the reverse.
        files.write_file(self._file_of(name, "key.pem"), sealed, mode=0o600, replace=False)
        return self._add_entry(name, PublicKey.of(key), None)

    def add(self, name: str, public: PublicKey, program: Path) -> KeyEntry:
        """Enter a key whose private half a program holds."""
        self._check_free(name)
        self._prepare_folder()
        return self._add_entry(name, public, str(program.absolute()))

    def entries(self) -> list[KeyEntry]:
        """Return all keys, oldest first."""
        return sorted(map(self.get, self._list_names()), key=lambda e: (e.created, e.name))

    def get(self, name: str) -> KeyEntry:
        """Return one key's entry."""
        _check_name(name)
        file = self._file_of(name, "json")
        if not file.exists():
            raise UsageError(
                "key_unknown",
                f"There is no key {name} in {self.folder}.",
                found=name,
                expected=", ".join(sorted(self._list_names())) or "beacon-ota keys new NAME",
            )
        try:
            entry = KeyEntry(**json.loads(files.read_file(file, MAX_FILE)))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError("keyring_damaged", f"{file} is damaged: {error}") from error
        if entry.name != name or entry.keyid != self.public(name).keyid:
            raise InputError(
                "keyring_damaged",
                f"{file} does not belong to the public key beside it.",
                found=f"{entry.name} {entry.keyid}",
                expected=f"{name} {self.public(name).keyid}",
            )
        return entry

    def public(self, name: str) -> PublicKey:
        """Return a key's public half."""
        file = self._file_of(name, "pub.pem")
        return PublicKey.from_pem(files.read_file(file, MAX_FILE), name=str(file))

    def signer(self, name: str, password: str | None) -> KeySigner | ProgramSigner:
        """Return what signs for a key; the password matters for key files only.

        Raises:
            DeniedError: ``key_password``.
        """
        entry = self.get(name)
        public = self.public(name)
        if entry.program:
            return ProgramSigner(name, public, Path(entry.program))
        key = self._open_private(name, password or "")
        if PublicKey.of(key) != public:
            raise InputError("keyring_damaged", f"The private key {name} is not {entry.keyid}.")
        return KeySigner(name, public, key)

    def change_password(self, name: str, old: str, new: str) -> None:
        """Encrypt a key file under another password."""
        if self.get(name).program:
            raise UsageError("key_kind", f"A program holds {name}: it has no password here.")
        check_password(new)
        sealed = pkcs8.encrypt_key(self._open_private(name, old), new)
        files.write_file(self._file_of(name, "key.pem"), sealed, mode=0o600)

    def trusted(self, names: list[str] | None = None, threshold: int = 1) -> KeySet:
        """Return the set that new apps should trust: the named keys, else all not retired."""
        if not names:
            names = [entry.name for entry in self.entries() if not entry.retired]
        return KeySet.of([self.public(self.get(name).name) for name in names], threshold)

    def rotate(self, old: str, new: str, password: str) -> tuple[KeyEntry, KeyEntry]:
        """Make ``new`` and retire ``old``, which goes on being able to sign.

        Returns:
            The entries of the old and of the new key.
        """
        entry = self.get(old)
        if entry.retired:
            raise UsageError(
                "key_retired",
                f"{old} is retired already.",
                found=entry.replaced_by,
                expected="a key that is in use",
            )
        made = self.new(new, password)
        entry = replace(entry, retired=_format_now(), replaced_by=new)
        self._write_entry(entry)
        return entry, made

    def _add_entry(self, name: str, public: PublicKey, program: str | None) -> KeyEntry:
        entry = KeyEntry(name, public.keyid, _format_now(), program)
        self._write_entry(entry)
        files.write_file(self._file_of(name, "pub.pem"), public.pem(), replace=False)
        return entry

    def _write_entry(self, entry: KeyEntry) -> None:
        text = json.dumps(asdict(entry), indent=2) + "\n"
        files.write_file(self._file_of(entry.name, "json"), text.encode())

    def _open_private(self, name: str, password: str) -> rsa.RSAPrivateKey:
        return pkcs8.decrypt_key(
            files.read_file(self._file_of(name, "key.pem"), MAX_FILE), password, name=name
        )

    def _prepare_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError("file_unwritable", f"{self.folder}: {error.strerror}.") from error
        # A keyring inside a checkout must not end up in its history.
        ignore = self.folder / ".gitignore"
        if not ignore.exists():
            files.write_file(ignore, b"*.key.pem\n")

    def _check_free(self, name: str) -> None:
        _check_name(name)
        if any(self._file_of(name, end).exists() for end in ("json", "pub.pem", "key.pem")):
            raise UsageError("key_exists", f"There is a key {name} in {self.folder} already.")

    def _list_names(self) -> list[str]:
        return [f.name.removesuffix(".pub.pem") for f in self.folder.glob("*.pub.pem")]

    def _file_of(self, name: str, end: str) -> Path:
        return self.folder / f"{name}.{end}"


def check_password(password: str) -> None:
    """Refuse a password that protects nothing.

    Raises:
        UsageError: ``key_password_short``.
    """
    if len(password) < MIN_PASSWORD:
        raise UsageError(
            "key_password_short",
            "The password protects the key that every beacon obeys.",
            found=f"{len(password)} characters",
            expected=f"at least {MIN_PASSWORD}",
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            "key_name",
            "A key's name becomes a file's name.",
            found=name[:80],
            expected="letters, digits, - and _",
        )


def _format_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
