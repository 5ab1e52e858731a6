"""``keys`` and ``release sign|verify`` as a person or a script uses them."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beacon_ota.cli import main
from beacon_ota.images import blocks
from beacon_ota.trust import KeySet, encrypt
from tests.trust.lab import NOW
from tests.trust.test_dsse import needs_openssl, openssl_verifies

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test works in an empty folder, with the password in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEACON_OTA_KEYRING", str(tmp_path / "keys"))
    monkeypatch.setenv("BEACON_OTA_KEY_PASSWORD", PASSWORD)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def run(capfd):
    """Run ``keys …`` or ``release …`` in this process: (exit code, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        exit_code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as error:
            exit_code = error.code if isinstance(error.code, int) else 1
        out, err = capfd.readouterr()
        return exit_code, out, err

    return run


@pytest.fixture
def ok(run):
    """Run, expect success, return stdout."""

    def ok(*args: object) -> str:
        exit_code, out, err = run(*args)
        assert exit_code == 0, out + err
        return out

    return ok


@pytest.fixture
def refused(run):
    """Run, expect a refusal, return (exit code, the error's code)."""

    def refused(*args: object) -> tuple[int, str]:
        exit_code, out, err = run(*args)
        assert exit_code, out
        assert not out
        return exit_code, err.split()[-1]

    return refused


def test_new_list_export(ok, folder):
    shown = ok("keys", "new", "release-2026")
    assert "back up" in shown
    assert "only key" in shown
    assert "only key" not in ok("keys", "new", "spare")
    rows = json.loads(ok("keys", "list", "--json"))
    assert [row["name"] for row in rows] == ["release-2026", "spare"]
    assert {row["state"] for row in rows} == {"active"}
    assert rows[0]["keyid"] in ok("keys", "list")
    data = ok("keys", "export", "--threshold", "2")
    assert sorted(KeySet.parse(data).keys) == sorted(row["keyid"] for row in rows)
    assert KeySet.parse(data).threshold == 2
    assert "1 key" in ok("keys", "export", "spare", "-o", "keys.json")
    assert list(KeySet.parse((folder / "keys.json").read_bytes()).keys) == [rows[1]["keyid"]]
    assert ok("keys", "export", "--pem").count("BEGIN PUBLIC KEY") == 2


def test_refusals(ok, refused, monkeypatch):
    ok("keys", "new", "a")
    assert refused("keys", "new", "a") == (2, "key_exists")
    assert refused("keys", "new", "../b") == (2, "key_name")
    assert refused("keys", "export", "b") == (2, "key_unknown")
    assert refused("keys", "export", "--threshold", "2") == (2, "keys_threshold")
    assert refused("keys", "rotate", "b", "c") == (2, "key_unknown")
    Path("short").write_text("short\n")
    assert refused("keys", "new", "b", "--password-file", "short") == (2, "key_password_short")
    assert refused("keys", "new", "b", "--password-file", "none") == (2, "file_missing")
    Path("binary").write_bytes(b"\xff\xfe")
    assert refused("keys", "new", "b", "--password-file", "binary") == (2, "key_password_file")
    monkeypatch.delenv("BEACON_OTA_KEY_PASSWORD")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    assert refused("keys", "new", "b") == (2, "key_password_missing")


def test_password_files_and_changes(ok, refused):
    Path("one").write_text("the first password\r\nsecond line")
    Path("two").write_text("the other password")
    ok("keys", "new", "a", "--password-file", "one")
    ok("keys", "password", "a", "--password-file", "one", "--new-password-file", "two")
    again = ("keys", "password", "a", "--password-file", "one", "--new-password-file", "two")
    assert refused(*again) == (4, "key_password")
    ok("keys", "password", "a", "--password-file", "two", "--new-password-file", "one")


def test_rotate(ok):
    ok("keys", "new", "old")
    steps = ok("keys", "rotate", "old", "new")
    assert "--key old --key new" in steps
    rows = {row["name"]: row for row in json.loads(ok("keys", "list", "--json"))}
    assert (rows["old"]["state"], rows["old"]["replaced_by"]) == ("retired", "new")
    assert list(KeySet.parse(ok("keys", "export")).keys) == [rows["new"]["keyid"]]
    made = json.loads(ok("keys", "rotate", "new", "newer", "--json"))
    assert made["new"]["name"] == "newer"


def test_fleet_key(ok, refused, folder):
    ok("keys", "fleet", "fleet.key")
    assert len(encrypt.read_fleet_key(folder / "fleet.key")) == 16
    assert refused("keys", "fleet", "fleet.key") == (2, "file_exists")


@pytest.fixture
def release_file(ok, image, folder) -> Path:
    """A release image on disk, of an app that trusts the keyring's key."""
    ok("keys", "new", "release")
    file = folder / "release.bin"
    file.write_bytes(image("1.2.3", KeySet.parse(ok("keys", "export"))))
    return file


def test_sign_and_verify(ok, refused, release_file):
    shown = ok("release", "sign", release_file, "--min-version", "1.0.0")
    assert "1.2.3" in shown
    row = json.loads(ok("release", "verify", release_file, "--json"))
    assert (row["version"], row["min_version"], row["looked_into"]) == ("1.2.3", "1.0.0", True)
    assert row["expires_at"] - row["issued_at"] == 365 * 86_400
    assert row["signed_by"] == [json.loads(ok("keys", "list", "--json"))[0]["keyid"]]
    Path("keys.json").write_text(ok("keys", "export"))
    ok("release", "verify", release_file, "--keys", "keys.json")
    ok("keys", "new", "other")
    Path("others.json").write_text(ok("keys", "export", "other"))
    assert refused("release", "verify", release_file, "--keys", "others.json") == (
        1,
        "manifest_signature",
    )
    late = str(row["expires_at"])
    assert refused("release", "verify", release_file, "--at", late) == (1, "manifest_expired")


def test_verify_answers_for_a_beacon(ok, refused, release_file):
    ok("release", "sign", release_file, "--min-version", "1.0.0")
    verify = ("release", "verify", release_file, "--running")
    ok(*verify, "1.2.2")
    assert refused(*verify, "1.2.3") == (1, "downgrade")
    assert refused(*verify, "1.2.2", "--floor", "1.3.0") == (1, "downgrade")
    assert refused(*verify, "0.9.0") == (1, "image")
    assert refused(*verify, "1.2.2", "--device-type", "esp32c3-8mb") == (1, "device_type")


def test_terms(ok, refused, release_file):
    sign = ("release", "sign", release_file, "--json", "--issued-at", NOW)
    row = json.loads(ok(*sign, "--expires", "30d", "--required"))
    assert (row["issued_at"], row["expires_at"]) == (NOW, NOW + 30 * 86_400)
    assert row["required"] is True
    assert json.loads(ok(*sign, "--expires", "2027-01-31"))["expires_at"] == 1_801_353_600
    assert json.loads(ok(*sign, "--expires", "2027-01-31T01:00+01:00"))["expires_at"] == (
        1_801_353_600
    )
    assert refused(*sign, "--expires", "soon") == (2, "date")
    assert refused(*sign, "--expires", "0d") == (1, "manifest_field")
    assert refused(*sign, "--expires", "2020-01-01") == (1, "manifest_field")
    assert refused(*sign, "--min-version", "1") == (1, "manifest_field")


def test_a_refused_image_leaves_nothing(ok, refused, folder, image):
    ok("keys", "new", "release")
    file = folder / "release.bin"
    for data, wanted in ((bytes(5000), "image_magic"), (image("1.0.0"), "keys_missing")):
        file.write_bytes(data)
        assert refused("release", "sign", file) == (1, wanted)
        assert not (folder / "release.bin.manifest.json").exists()
    assert refused("release", "sign", folder / "none.bin") == (2, "file_missing")
    assert refused("release", "verify", file) == (2, "file_missing")


def test_which_key(ok, refused, folder, image):
    file = folder / "release.bin"
    file.write_bytes(image("1.0.0", insecure=True))
    assert refused("release", "sign", file) == (2, "key_choose")
    ok("keys", "new", "a")
    ok("keys", "new", "b")
    assert refused("release", "sign", file) == (2, "key_choose")
    assert refused("release", "sign", file, "--key", "c") == (2, "key_unknown")
    row = json.loads(ok("release", "sign", file, "--key", "a", "--key", "b", "--json"))
    assert len(row["signed_by"]) == 2


def test_signers_in_different_places(ok, refused, release_file):
    """k-of-n: one makes the manifest, the other adds a signature to the same bytes."""
    ok("keys", "new", "second")
    Path("keys.json").write_text(ok("keys", "export", "--threshold", "2"))
    verify = ("release", "verify", release_file, "--keys", "keys.json", "--json")
    first = json.loads(ok("release", "sign", release_file, "--key", "release", "--json"))
    assert refused(*verify) == (1, "manifest_signature")
    both = json.loads(ok("release", "sign", release_file, "--append", "--key", "second", "--json"))
    assert both["signed_by"][0] == first["signed_by"][0]
    assert json.loads(ok(*verify))["signed_by"] == both["signed_by"]
    other = release_file.with_name("other.bin")
    other.write_bytes(release_file.read_bytes() + b"x")
    text = release_file.with_name("release.bin.manifest.json")
    append = ("release", "sign", other, "--append", "--key", "second", "--manifest", text)
    assert refused(*append) == (1, "manifest_mismatch")
    text.write_text("{}")
    assert refused("release", "sign", release_file, "--append", "--key", "second") == (
        1,
        "manifest_signature",
    )


def test_encrypted(ok, refused, release_file, folder):
    ok("keys", "fleet", "fleet.key")
    ok("keys", "fleet", "other.key")
    sealed = folder / "sealed.bin"
    sign = ("release", "sign", release_file, "--encrypt", "--fleet-key", "fleet.key")
    assert refused(*sign) == (2, "options")
    assert refused("release", "sign", release_file, "--out", sealed) == (2, "options")
    row = json.loads(ok(*sign, "--out", sealed, "--json"))
    assert row["encryption"]["scheme"] == "aes-128-ctr"
    assert sealed.stat().st_size == row["size"]
    index = sealed.with_name("sealed.bin.blocks").read_bytes()
    assert index == blocks.hash_sectors(release_file.read_bytes())
    assert json.loads(ok("release", "verify", sealed, "--json"))["looked_into"] is False
    opened = ("release", "verify", sealed, "--json", "--fleet-key")
    assert json.loads(ok(*opened, "fleet.key"))["looked_into"] is True
    assert refused(*opened, "other.key") == (1, "decrypt")
    assert "aes-128-ctr" in ok("release", "verify", sealed)
    assert refused("release", "verify", release_file, "--manifest", f"{sealed}.manifest.json") == (
        1,
        "manifest_mismatch",
    )


@needs_openssl
def test_openssl_can_check_again(ok, release_file, folder):
    ok("release", "sign", release_file)
    outs = ("--pae-out", folder / "pae", "--sig-out", folder / "sig", "--pub-out", folder / "pub")
    ok("release", "verify", release_file, *outs)
    assert openssl_verifies(folder)
    (folder / "sig").write_bytes(bytes(384))
    assert not openssl_verifies(folder)


@needs_openssl
def test_a_program_signs(ok, refused, release_file, folder):
    key = json.loads(ok("keys", "list", "--json"))[0]
    program = folder / "signer"
    program.write_text(
        "#!/bin/sh\nexec openssl dgst -sha256 -sigopt rsa_padding_mode:pss "
        f"-sigopt rsa_pss_saltlen:32 -sign {key['held_by']} -passin 'pass:{PASSWORD}'\n"
    )
    public = ("--public", key["public"], "--keyring", folder / "cards")
    assert refused("keys", "add", "card", *public, "--signer", program) == (2, "signer_missing")
    program.chmod(0o700)
    ok("keys", "add", "card", *public, "--signer", program)
    ok("release", "sign", release_file, "--keyring", folder / "cards")
    ok("release", "verify", release_file)


def test_the_password_is_asked_for_twice_and_not_shown(folder):
    """In a real terminal: a typing error is noticed, nothing is echoed."""
    environment = {k: v for k, v in os.environ.items() if k != "BEACON_OTA_KEY_PASSWORD"}
    command = Path(sys.executable).with_name("beacon-ota")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [command, "keys", "new", "release"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    seen = 0

    def until(words: bytes) -> None:
        nonlocal shown, seen
        deadline = time.monotonic() + 30
        while words not in shown[seen:]:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(ours, 4096)
        seen = shown.index(words, seen) + len(words)

    said = b"New password for key release (at least 8 characters): "
    repeat = b"Repeat for confirmation: "
    for answers in ((b"a first password", b"a worse password"), (b"my password", b"my password")):
        for question, answer in zip((said, repeat), answers, strict=True):
            until(question)
            os.write(ours, answer + b"\n")
    until(b"is ready")
    assert b"a first password" not in shown
    assert b"my password" not in shown
    assert process.wait(30) == 0
    os.close(ours)
    assert (folder / "keys" / "release.key.pem").exists()
