"""The folder of keys: encrypted files, other people's programs, rotation."""

import json
import stat
import subprocess
from pathlib import Path

import pytest

from beacon_ota.errors import BeaconOtaError, DeniedError, InputError, ReachError, UsageError
from beacon_ota.trust import KeySet, dsse, signers
from beacon_ota.trust.keyring import Keyring, default_folder
from beacon_ota.wire import manifest as wire
from tests.trust.lab import RELEASE
from tests.trust.test_dsse import PSS, needs_openssl

PASSWORD = "correct horse battery"


@pytest.fixture
def ring(tmp_path) -> Keyring:
    return Keyring(tmp_path / "keys")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Keyring:
    """A ring with one key, for tests that only read it."""
    ring = Keyring(tmp_path_factory.mktemp("ring") / "keys")
    ring.new("release", PASSWORD)
    return ring


def code(kind: type[BeaconOtaError], call, *args) -> str:
    with pytest.raises(BeaconOtaError) as caught:
        call(*args)
    assert isinstance(caught.value, kind)
    return caught.value.code


def test_a_new_key_signs(made):
    entry = made.get("release")
    signer = made.signer("release", PASSWORD)
    text = dsse.sign_payload(RELEASE.payload(), [signer])
    payload, signatures = dsse.unpack_envelope(text)
    assert dsse.valid_signers(payload, signatures, made.trusted()) == [entry.keyid]
    assert made.entries() == [entry]


def test_the_private_key_is_for_its_owner_and_encrypted(made):
    file = made.folder / "release.key.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert file.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert (made.folder / ".gitignore").read_text() == "*.key.pem\n"


@needs_openssl
def test_openssl_opens_the_key_file(made):
    file = made.folder / "release.key.pem"

    def opens(password):
        return subprocess.run(
            ["openssl", "pkey", "-in", str(file), "-passin", f"pass:{password}", "-pubout"],
            capture_output=True,
            timeout=30,
            check=False,
        )

    assert opens(PASSWORD).stdout == (made.folder / "release.pub.pem").read_bytes()
    assert opens("another").returncode != 0
    shown = subprocess.run(
        ["openssl", "asn1parse", "-in", str(file)], capture_output=True, timeout=30, check=True
    ).stdout
    assert b"scrypt" in shown
    assert b"aes-256-cbc" in shown


def test_wrong_passwords(made):
    for password in ("", "wrong", PASSWORD + " ", None, "p" * 5000):
        assert code(DeniedError, made.signer, "release", password) == "key_password"


def test_short_passwords_and_bad_names(ring):
    for password in ("", "1234567"):
        assert code(UsageError, ring.new, "release", password) == "key_password_short"
    for name in ("", "../release", "a/b", ".hidden", "-x", "a b", "ä", "a" * 65, "a\n", "a.key"):
        assert code(UsageError, ring.new, name, PASSWORD) == "key_name"
        assert code(UsageError, ring.get, name) == "key_name"
    assert not ring.folder.exists()
    assert ring.entries() == []


def test_nothing_is_overwritten(ring):
    ring.new("release", PASSWORD)
    before = {f.name: f.read_bytes() for f in ring.folder.iterdir()}
    assert code(UsageError, ring.new, "release", PASSWORD) == "key_exists"
    assert code(UsageError, ring.rotate, "release", "release", PASSWORD) == "key_exists"
    assert {f.name: f.read_bytes() for f in ring.folder.iterdir()} == before
    assert code(UsageError, ring.get, "other") == "key_unknown"


def test_damaged_files_are_named(ring):
    ring.new("a", PASSWORD)
    ring.new("b", PASSWORD)
    a = ring.folder / "a.json"
    good = a.read_text()
    for bad in ("", "null", "[]", '{"name":"a"}', good.replace('"name"', '"nome"'), "\0"):
        a.write_text(bad)
        assert code(InputError, ring.get, "a") == "keyring_damaged"
    a.write_text((ring.folder / "b.json").read_text().replace('"b"', '"a"'))
    assert code(InputError, ring.get, "a") == "keyring_damaged"
    a.write_text(good)
    sealed = ring.folder / "a.key.pem"
    pem = sealed.read_bytes()
    for bad, wanted in (
        (b"", "key_file"),
        (pem[:-400], "key_file"),
        (pem.replace(b"ENCRYPTED ", b""), "key_file"),
        ((ring.folder / "b.key.pem").read_bytes(), "keyring_damaged"),
    ):
        sealed.write_bytes(bad)
        assert code(InputError, ring.signer, "a", PASSWORD) == wanted
    sealed.unlink()
    assert code(UsageError, ring.signer, "a", PASSWORD) == "file_missing"
    (ring.folder / "a.pub.pem").write_bytes(b"x" * 20_000)
    assert code(InputError, ring.get, "a") == "file_too_large"


def test_change_of_password(ring):
    entry = ring.new("release", PASSWORD)
    assert code(DeniedError, ring.change_password, "release", "wrong", "new password") == (
        "key_password"
    )
    assert code(UsageError, ring.change_password, "release", PASSWORD, "short") == (
        "key_password_short"
    )
    ring.change_password("release", PASSWORD, "new password")
    assert code(DeniedError, ring.signer, "release", PASSWORD) == "key_password"
    assert ring.signer("release", "new password").public.keyid == entry.keyid
    assert stat.S_IMODE((ring.folder / "release.key.pem").stat().st_mode) == 0o600


def test_rotation_keeps_the_old_key_able_to_sign(ring):
    first = ring.new("one", PASSWORD)
    ring.new("spare", PASSWORD)
    old, new = ring.rotate("one", "two", PASSWORD)
    assert (old.keyid, old.replaced_by) == (first.keyid, "two")
    assert old.retired
    assert sorted(ring.trusted().keys) == sorted([new.keyid, ring.get("spare").keyid])
    assert sorted(ring.trusted(["one", "two"], 2).keys) == sorted([old.keyid, new.keyid])
    assert ring.signer("one", PASSWORD).public.keyid == first.keyid
    assert code(UsageError, ring.rotate, "one", "three", PASSWORD) == "key_retired"
    assert code(UsageError, ring.trusted, ["nobody"]) == "key_unknown"


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BEACON_OTA_KEYRING", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    elsewhere = default_folder()
    assert elsewhere.name == "keys"
    assert elsewhere.is_absolute()
    (tmp_path / "keys").mkdir()
    assert default_folder() == elsewhere  # some folder of that name is not a keyring
    (tmp_path / "keys" / "a.pub.pem").touch()
    assert default_folder() == Path("keys")
    monkeypatch.setenv("BEACON_OTA_KEYRING", "/elsewhere")
    assert default_folder() == Path("/elsewhere")


# -- keys that a program holds


def program(tmp_path: Path, body: str) -> Path:
    file = tmp_path / "signer"
    file.write_text("#!/bin/sh\n" + body)
    file.chmod(0o700)
    return file


@needs_openssl
def test_openssl_as_the_signing_program(made, ring, tmp_path):
    """The documented contract is met by a line of shell."""
    key = made.folder / "release.key.pem"
    run = f"exec openssl dgst {' '.join(PSS)} -sign {key} -passin 'pass:{PASSWORD}'\n"
    name = f"echo $BEACON_OTA_KEY $BEACON_OTA_KEYID > {tmp_path}/asked\n"
    entry = ring.add("card", made.public("release"), program(tmp_path, name + run))
    assert entry.kind == "program"
    text = dsse.sign_payload(RELEASE.payload(), [ring.signer("card", None)])
    payload, signatures = dsse.unpack_envelope(text)
    assert dsse.valid_signers(payload, signatures, ring.trusted()) == [entry.keyid]
    assert (tmp_path / "asked").read_text() == f"card {entry.keyid}\n"
    assert code(UsageError, ring.change_password, "card", "a", "long enough") == "key_kind"


def signing(ring: Keyring, made: Keyring, file: Path) -> signers.KeySigner | signers.ProgramSigner:
    ring.add("card", made.public("release"), file)
    return ring.signer("card", None)


def test_programs_that_do_not_sign(ring, made, tmp_path):
    data = wire.pae(RELEASE.payload())
    file = program(tmp_path, "echo 'no card in the reader' >&2; exit 3")
    signer = signing(ring, made, file)
    with pytest.raises(DeniedError, match="no card in the reader") as caught:
        signer.sign(data)
    assert caught.value.code == "signer_refused"
    # It need not read what it does not want.
    for body in ("true", "echo hello", "head -c 384 /dev/zero", "cat", "head -c 100000 /dev/zero"):
        program(tmp_path, body)
        assert code(InputError, dsse.sign_payload, RELEASE.payload(), [signer]) == "signer_wrong"
    file.write_text("#!/nowhere/interpreter\n")
    assert code(ReachError, signer.sign, data) == "signer_missing"
    file.unlink()
    assert code(ReachError, signer.sign, data) == "signer_missing"


def test_a_program_that_hangs(made, tmp_path):
    file = program(tmp_path, "exec sleep 60")
    signer = signers.ProgramSigner("card", made.public("release"), file, timeout_s=0.3)
    assert code(ReachError, signer.sign, b"data") == "signer_timeout"


def test_the_ring_writes_what_apps_read(made):
    data = made.trusted().to_json()
    assert KeySet.parse(data).threshold == 1
    assert json.loads(data)["threshold"] == 1
