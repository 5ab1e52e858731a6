"""What operators do over the years, walked through: new beacon keys, rotated signing keys,
encrypted releases, the way back, TLS. The command line, the orchestrator, the beacon's own code."""

import json
from pathlib import Path

import pytest

from beacon_ota.cli import main
from beacon_ota.images import release
from beacon_ota.trust import encrypt
from tests.firmware.beacons import make
from tests.firmware.test_tls import HEAP, certificate
from tests.orchestrator.world import Local, TestBeacon, environment, until
from tests.system.conftest import put as upload
from tests.system.conftest import signed
from tests.system.scene import DEADLINE_S, metric, pair, roll_out, serve

pytestmark = pytest.mark.timeout(600)  # for machines that do other things as well


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command; return its output, and check its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEACON_OTA_KEYRING", str(tmp_path / "keys"))
    monkeypatch.setenv("BEACON_OTA_KEY_PASSWORD", "correct horse battery")

    def go(*args: object, code: int = 0) -> str:
        exit_code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as error:
            exit_code = int(error.code or 0)
        out, err = capfd.readouterr()
        assert exit_code == code, (args, out, err)
        return out if code == 0 else err.split()[-1]

    return go


def reach(monkeypatch, folder, server) -> None:
    """Let the command line find a server."""
    for name, value in environment(folder, server).items():
        monkeypatch.setenv(name, value)


def put(run, small_core, version: str, keys: Path, *signing: str, changes=None) -> Path:
    """Build a release, sign it, upload it; return the file of the plain image."""
    file = Path(f"{version}.bin")
    built = make(small_core, version, changes, keys=keys.read_bytes(), insecure=False)
    file.write_bytes(built)
    run("release", "sign", file, *signing)
    sealed = Path(signing[signing.index("-o") + 1]) if "-o" in signing else file
    run("release", "upload", sealed, "--stable")
    return file


def test_keys_of_beacons(server, released, run, tmp_path, monkeypatch):
    """Re-keyed over the air, thrown out, taken in again."""
    reach(monkeypatch, tmp_path, server)
    admin = server.admin()
    with pair(server, "keyed", released("1.0.0").image) as one:
        one.runs("1.0.0")
        run("beacon", "rekey", one.name)
        one.beacon.reset()  # the new key travels with the answer to a report
        one.until(
            lambda: admin.list_audit_entries(target=one.name, action="beacon.rekeyed"),
            "the new key",
        )
        fresh = one.beacon.setting("beacon_key")
        assert isinstance(fresh, bytes) and len(fresh) == 32 and fresh != one.key
        # It never crossed the wire in the clear, and the old one is worth nothing now.
        assert not any(fresh.hex().encode() in answer.body for _, answer in one.middle.seen)
        old = TestBeacon(server.url, one.name, one.key)
        answer = old.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
        assert (answer.status, answer.json["code"]) == (401, "bad_mac")
        # Thrown out: it is refused, counted, and goes on doing its work.
        refused = 'beacon_ota_refused_total{code="unknown_beacon"}'
        before = metric(admin, refused)
        run("beacon", "remove", one.name, "--yes")
        until(lambda: metric(admin, refused) >= before + 2, deadline_s=DEADLINE_S, what="refusals")
        assert one.beacon.powered and one.beacon.boots[-1].ended is None
        # Taken in again under the key that it has.
        run("beacon", "add", one.name, "--key", fresh.hex())
        one.runs("1.0.0")


def test_too_many_refusals_are_held_off(tmp_path):
    """One address guessing gets 429; a right signature is never held back."""
    with Local(tmp_path / "data") as local:
        (beacon,) = local.beacons(1)
        guess = TestBeacon(local.url, beacon.id, bytes(32))
        guess.clock = beacon.clock
        held_off(beacon, guess)


def held_off(beacon: TestBeacon, guess: TestBeacon) -> None:
    answers = [
        guess.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False) for _ in range(40)
    ]
    assert {answer.status for answer in answers} == {401, 429}
    assert answers[-1].json["code"] == "too_many_refusals"
    assert int(answers[-1].headers["retry-after"]) > 0
    assert beacon.poll().status == 204


def test_keys_rotate_and_releases_are_sealed(run, small_core, tmp_path, monkeypatch):
    """The signing key rotates with an encrypted release; what the old key signs after that is
    refused; and the release before comes again, under the new key and a higher version."""
    run("keys", "new", "old")
    run("keys", "export", "-o", "old.json")
    run("keys", "fleet", "fleet.key")
    fleet = encrypt.read_fleet_key(tmp_path / "fleet.key")
    base = make(small_core, "1.0.0", keys=Path("old.json").read_bytes(), insecure=False)
    run("keys", "rotate", "old", "new")
    run("keys", "export", "-o", "new.json")
    run("keys", "export", "old", "new", "-o", "both.json")
    sealing = ("--encrypt", "--fleet-key", "fleet.key", "-o")
    with serve(tmp_path, Path("both.json").read_bytes()) as server:
        reach(monkeypatch, tmp_path, server)
        admin = server.admin()
        with pair(server, "rotor", base, settings={"fleet_key": fleet}) as one:
            one.runs("1.0.0")
            both = ("--key", "old", "--key", "new", *sealing, "1.1.0.sealed")
            plain = put(run, small_core, "1.1.0", Path("new.json"), *both).read_bytes()
            roll_out(server, admin.find_firmware("1.1.0")["firmware_id"], one.name)
            one.runs("1.1.0")
            # Whoever listened, or mirrored, has seen nothing but ciphertext.
            wire = b"".join(answer.body for _, answer in one.middle.seen)
            code = release.parse_release(plain).files["main.mpy"]
            assert code not in wire and plain[:64] not in wire
            (stored,) = (f.read_bytes() for f in (server.data / "blobs").iterdir() if f.is_file())
            assert code not in stored
            parts = [a.body for r, a in one.middle.seen if r.kind == "download" and a.status < 300]
            assert parts and all(part and part in stored for part in parts)

            # What the retired key alone has signed is refused from now on.
            put(
                run, small_core, "1.2.0", Path("new.json"), "--key", "old", *sealing, "1.2.0.sealed"
            )
            roll_out(server, admin.find_firmware("1.2.0")["firmware_id"], one.name)
            failed = one.until(
                lambda: [a for a in one.attempts if a["result"] == "failed"], "the refusal"
            )
            assert (failed[0]["failed_in"], failed[0]["code"]) == ("verify", "signature")
            admin.post_firmware_action(failed[0]["firmware_id"], "deprecate")

            # The way back: 1.1.0 again, as 1.3.0.
            again = ("--as", "1.3.0", "--key", "new", "--fleet-key", "fleet.key", "--stable")
            done = json.loads(run("release", "republish", "1.1.0", *again, "--json"))
            roll_out(server, done["firmware_id"], one.name)
            one.runs("1.3.0")
            assert one.beacon.setting("floor") == b"1.3.0"
            assert admin.verify_audit()["entries"]
        assert "Traceback" not in server.log()


def test_tls_with_a_pinned_certificate(trusted, key, small_core, tmp_path, monkeypatch):
    """From the first poll to the update, through the real server's own TLS."""
    der, pem, private = certificate("orchestrator.local", "127.0.0.1")
    cert, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(pem)
    keyfile.write_bytes(private)
    monkeypatch.setenv("BEACON_OTA_CA", str(cert))

    def build(version: str, ca: bytes) -> bytes:
        return make(small_core, version, keys=trusted, insecure=False, extra={"ca.der": ca})

    https: dict[str, int | bytes] = {"orch_url": b"https://orchestrator.local:8443"}
    options = (f"--tls-cert={cert}", f"--tls-key={keyfile}")
    with serve(tmp_path, trusted, *options) as server:
        assert server.url.startswith("https://")
        ways: dict = {
            "port": int(server.url.rpartition(":")[2]),
            "settings": https,
            "heap": HEAP,
        }
        with pair(server, "pinned", build("1.0.0", der), **ways) as one:
            one.runs("1.0.0")
            fresh = signed(build("2.0.0", der), key)
            firmware = upload(server, fresh, tmp_path)["firmware_id"]
            roll_out(server, firmware, one.name)
            one.runs("2.0.0")
            one.until(lambda: [a["result"] for a in one.attempts] == ["success"], "the success")
            assert not one.middle.seen
        # One that trusts another certificate says nothing to this server.
        stranger = certificate("orchestrator.local", "127.0.0.1")[0]
        with pair(server, "wary", build("1.0.0", stranger), **ways) as two:
            two.until(lambda: "trusted CA" in two.beacon.console, "a refusal of the server")
            assert two.shown["last_seen"] is None
