"""The commands ``image`` and ``core``, as typed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from beacon_ota import cli
from beacon_ota.cli import virtual
from beacon_ota.images import core as cores
from beacon_ota.images import flash, release, synthetic
from beacon_ota.trust import KeySet, PublicKey
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import Network


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cores.ENV, raising=False)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args):
        code = 0
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "app"
    (folder / "pkg").mkdir(parents=True)
    (folder / "main.py").write_text(
        "import pkg\nfrom ota import agent\n\n\ndef run():\n    print('hello')\n"
    )
    (folder / "ota").mkdir()
    (folder / "ota" / "agent.py").write_text("def run():\n    pass\n")
    (folder / "pkg" / "__init__.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def keys_json():
    from cryptography.hazmat.primitives.asymmetric import rsa

    made = rsa.generate_private_key(65537, 3072).public_key()
    return KeySet.of([PublicKey.of(made)]).to_json()


def test_a_release_built_inspected_and_flashed(run, app, tmp_path, keys_json):
    (tmp_path / "keys.json").write_bytes(keys_json + b"\n")
    (tmp_path / "ca.der").write_bytes(b"\x30")
    args = ("--version", "1.2.3", "--synthetic", "--app", app, "--built-at", 7)
    code, out, err = run(
        "image", "build", *args, "--keys", "keys.json", "--add", "ca.der=ca.der", "--json"
    )
    assert (code, err) == (0, "")
    told = json.loads(out)
    built = release.parse_release(Path(told["file"]).read_bytes())
    assert told["file"] == "esp32c3-1.2.3.bin"
    assert (told["checksum"], told["size"]) == (built.checksum, built.size)
    assert told["room"] == 0x1C0000 - built.size
    assert built.info.built_at == 7 and not built.info.insecure
    assert built.files["keys.json"] == keys_json and built.files["ca.der"] == b"\x30"

    code, out, err = run("image", "inspect", told["file"], "--json", "--check")
    assert code == 0
    assert json.loads(out)["facts"]["release"]["version"] == "1.2.3"

    settings = ("--beacon-id", "b1", "--beacon-key", "new", "--wifi-ssid", "hall")
    code, out, err = run(
        "image", "flash", "--synthetic", "--release", told["file"], *settings,
        "--wifi-pass", "correct horse", "--utc-off", "-60", "--nvs", "note=hex:00ff",
        "-o", "b1.bin", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    told = json.loads(out)
    found = flash.parse_flash(Path("b1.bin").read_bytes())
    assert found.errors == {} and found.settings
    assert found.settings.namespace("beacon") == {
        "beacon_id": b"b1",
        "beacon_key": bytes.fromhex(told["beacon_key"]),
        "note": b"\0\xff",
        "utc_off": -60,
        "wifi_pass": b"correct horse",
        "wifi_ssid": b"hall",
    }
    assert Path("b1.bin").stat().st_mode & 0o77 == 0  # it holds secrets
    code, out, err = run("image", "inspect", "b1.bin")
    assert code == 0
    assert "boots ota_0" in out and "esp32c3 1.2.3" in out and "correct horse" not in out


def test_what_the_command_builds_boots(run, tmp_path):
    """The project's own app out of the image joins the network that the settings name."""
    code, _, err = run(
        "image", "flash", "--synthetic", "--version", "1.0.0", "--insecure", "-o", "f.bin",
        "--beacon-id", "b1", "--beacon-key", "new", "--wifi-ssid", "hall",
        "--wifi-pass", "correct horse", "--orch-url", "http://127.0.0.1:1",
    )  # fmt: skip
    assert code == 0, err
    network = Network()
    network.add_access_point("hall", "correct horse")
    chip = Flash((tmp_path / "f.bin").read_bytes())
    with VirtualBeacon(chip, network=network, scale=10) as beacon:
        beacon.power_on()
        beacon.wait_for(lambda: beacon.wlan.connected, 30)
        assert beacon.boot and beacon.boot.slot == "ota_0"


def test_an_image_knows_the_chip_of_its_label(run, app):
    """A name alone says the last three bytes; a virtual beacon is the chip that it is for."""
    code, out, _ = run("provision", "label", "7c:df:a1:00:11:22")
    assert code == 0
    Path("label.csv").write_text(out)
    build = ("image", "flash", "--synthetic", "--app", app, "--insecure", "--version", "1.0.0")
    for given, address in (
        (("--label", "label.csv"), "7cdfa1001122"),
        (("--ble-name", "BLUFI_001124", "--pin", "12345678"), "001122"),
        (("--ble-name", "BLUFI_001101", "--pin", "12345678"), "0011ff"),
        ((), ""),
    ):
        assert run(*build, *given, "-o", "f.bin")[0] == 0
        image = Path("f.bin").read_bytes()
        assert flash.read_address(image).hex() == address
        assert virtual._labelled_address(Path("f.bin"), image).hex().endswith(address)
        assert len(virtual._labelled_address(Path("f.bin"), image)) == 6
    Path("label.csv").write_text(out.replace("7c:df:a1:00:11:22", "7c:df:a1:00:11:21", 1))
    code, _, err = run(*build, "--label", "label.csv")
    assert code == 1 and "label_file" in err


def test_the_same_command_gives_the_same_bytes(run, app):
    args = ("image", "build", "--version", "1.0.0", "--synthetic", "--app", app, "--insecure")
    assert run(*args, "-o", "a.bin")[0] == run(*args, "-o", "b.bin")[0] == 0
    assert Path("a.bin").read_bytes() == Path("b.bin").read_bytes()


def test_a_release_like_the_one_before_and_what_it_moves(run, app):
    for number in range(30):
        (app / f"m{number}.py").write_text(f"def f():\n    return {number!r} * 9\n" * 60)
    common = ("--synthetic", "--app", app, "--insecure", "--built-at", 7)
    assert run("image", "build", "--version", "1.0.0", *common, "-o", "a.bin")[0] == 0
    (app / "m3.py").write_text("def f():\n    return None\n" * 70)
    for like, name in (("a.bin", "b.bin"), ("a.bin", "c.bin"), (None, "anew.bin")):
        more = () if like is None else ("--like", like)
        code = run("image", "build", "--version", "1.0.1", *common, *more, "-o", name)[0]
        assert code == 0
    assert Path("b.bin").read_bytes() == Path("c.bin").read_bytes()
    code, out, _ = run("image", "diff", "a.bin", "b.bin", "--json")
    found = json.loads(out)
    assert code == 0 and found["same_core"]
    assert [one["name"] for one in found["files"]] == ["app.json", "m3.mpy"]
    assert len(found["sectors"]) <= 3 and found["cost"]["written"] == len(found["sectors"]) + 1
    assert found["cost"]["fetched"] < found["full"]["fetched"] / 3
    held = {name for one in found["sectors"] for name in one["holds"]}
    assert {"app.json", "m3.mpy", "folders"} <= held
    code, out, _ = run("image", "diff", "a.bin", "b.bin")
    assert code == 0 and "the same core" in out and "m3.mpy" in out
    assert run("image", "diff", "a.bin", "missing.bin")[0] == 2
    code, out, err = run("image", "build", "--version", "2.0.0", *common, "--like", app / "main.py")
    assert code == 1 and "image_magic" in err
    layout = json.loads(run("image", "inspect", "b.bin", "--json")[1])["facts"]["layout"]
    assert layout[0]["holds"] == "core" and "app.json" in layout[1]["holds"]
    assert sum("m3.mpy" in row["holds"] for row in layout) == 1


def test_keys_for_a_frozen_app(run, tmp_path, keys_json):
    (tmp_path / "keys.json").write_bytes(keys_json)
    (tmp_path / "core").write_bytes(synthetic.app_image(version="esp32c3 2.0.0"))
    args = ("image", "build", "--core", "core", "--frozen", "--keys", "keys.json")
    assert run(*args, "-o", "r.bin")[0] == 0
    found = release.parse_release((tmp_path / "r.bin").read_bytes())
    assert found.info.version == "2.0.0" and set(found.files) == {"app.json", "keys.json"}
    assert run("image", "inspect", "r.bin", "--check")[0] == 0
    assert run("image", "inspect", "core", "--check")[0] == 1  # it trusts nobody
    for more in (("--version", "2.0.1"), ("--board", "esp32c3-8mb"), ("--synthetic",)):
        assert run(*args, *more)[0] == 2
    (tmp_path / "core").write_bytes(synthetic.app_image())
    assert "core_not_frozen" in run(*args)[2]


def test_insecure_is_said_to_a_person(run, app):
    args = ("image", "build", "--version", "1.0.0", "--synthetic", "--app", app)
    code, out, err = run(*args, "--insecure")
    assert code == 0 and "INSECURE" in out and "virtual beacons only" in out


def test_secrets_come_from_files_too(run, app, tmp_path):
    (tmp_path / "key").write_text("ab" * 32 + "\n")
    (tmp_path / "pass").write_text("correct horse\n")
    args = ("--version", "1.0.0", "--synthetic", "--app", app, "--insecure")
    code, _, err = run(
        "image", "flash", *args, "--beacon-key", "key", "--wifi-ssid", "hall",
        "--wifi-pass-file", "pass", "--pin", "12345678", "--ble-name", "BLUFI_010203",
        "-o", "f.bin",
    )  # fmt: skip
    assert code == 0, err
    found = flash.parse_flash(Path("f.bin").read_bytes()).settings
    assert found
    values = found.namespace("beacon")
    assert values["beacon_key"] == b"\xab" * 32 and values["wifi_pass"] == b"correct horse"
    assert len(values["pin_w"]) == 160  # type: ignore[arg-type]


BUILD = ("image", "build", "--synthetic")
FLASH = ("image", "flash", "--synthetic")


@pytest.mark.parametrize(
    "args, exit_code, code",
    [
        ((*BUILD, "--insecure"), 2, "version_missing"),
        ((*BUILD, "--version", "1.0.0"), 2, "keys_missing"),
        ((*BUILD, "--version", "1.0", "--insecure"), 1, "app_version"),
        ((*BUILD, "--version", "1.0.0", "--insecure", "--board", "none"), 2, "board_unknown"),
        ((*BUILD, "--version", "1.0.0", "--insecure", "--app", "nowhere"), 1, "app_main"),
        ((*BUILD, "--version", "1.0.0", "--insecure", "--add", "x"), 2, "options"),
        ((*BUILD, "--version", "1.0.0", "--insecure", "--add", "x=none"), 2, "file_missing"),
        ((*BUILD, "--version", "1.0.0", "--keys", "none"), 2, "file_missing"),
        ((*BUILD, "--version", "1.0.0", "--keys", "junk"), 1, "keys_file"),
        ((*BUILD, "--version", "1.0.0", "--core", "junk", "--insecure"), 2, "options"),
        ((*BUILD, "--version", "1.0.0", "--insecure", "-o", "no/where"), 2, "file_unwritable"),
        (("image", "build", "--version", "1.0.0", "--core", "junk"), 1, "image_magic"),
        ((*FLASH, "--release", "junk"), 1, "image_magic"),
        ((*FLASH, "--release", "junk", "--version", "1.0.0"), 2, "options"),
        ((*FLASH, "--release", "junk", "--insecure"), 2, "options"),
        ((*FLASH, "--release", "other"), 1, "device_type"),
        ((*FLASH, "--release", "other", "--board", "esp32c3-1m"), 1, "slot_too_small"),
        ((*FLASH, "--release", "other", "--window", "soon"), 2, "setting_value"),
        ((*FLASH, "--release", "other", "--pin", "1"), 2, "options"),
        ((*FLASH, "--release", "other", "--nvs", "x"), 2, "options"),
        ((*FLASH, "--release", "other", "--nvs", "a_name_too_long_=1"), 1, "nvs_key"),
        ((*FLASH, "--release", "other", "--beacon-key", "nofile"), 2, "file_missing"),
        (
            (*FLASH, "--release", "other", "--wifi-pass", "x", "--wifi-pass-file", "junk"),
            2,
            "options",
        ),
        (("image", "flash", "--release", "other", "--core", "bare"), 2, "bootloader_missing"),
        (("image", "inspect", "junk"), 1, "image_unknown"),
        (("image", "inspect", "none"), 2, "file_missing"),
        (("core", "show", "--core", "junk"), 1, "image_magic"),
        (("core", "fetch", "--url", "ftp://x"), 2, "core_url"),
    ],
)
def test_refusals(run, tmp_path, release_factory, args, exit_code, code):
    (tmp_path / "junk").write_bytes(b"junk of some length, and no image of any kind")
    (tmp_path / "bare").write_bytes(synthetic.app_image())
    big = synthetic.app_image(1_100_000)
    (tmp_path / "other").write_bytes(release_factory(device_type="esp32c3-8mb", core=big))
    before = sorted(tmp_path.iterdir())
    status, out, err = run(*args)
    assert (status, out) == (exit_code, "")
    assert re.search(rf"code +{code}$", err, re.MULTILINE), err
    assert sorted(tmp_path.iterdir()) == before  # nothing is left behind


def test_a_missing_core_says_what_to_do(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "cache_folder", lambda: tmp_path)
    code, _, err = run("image", "build", "--version", "1.0.0", "--insecure")
    assert code == 2 and "core fetch" in err


def test_check_fails_on_what_is_bad(run, tmp_path, release_factory):
    (tmp_path / "r.bin").write_bytes(release_factory())  # trusts no keys
    assert run("image", "inspect", "r.bin")[0] == 0
    assert run("image", "inspect", "r.bin", "--check")[0] == 1


def test_core_show(run, tmp_path, monkeypatch):
    (tmp_path / "c.bin").write_bytes(synthetic.app_image(text=b"MicroPython v1.27.0 on 2025-12-09"))
    monkeypatch.setenv(cores.ENV, "c.bin")
    code, out, _ = run("core", "show", "--json")
    told = json.loads(out)
    assert (told["source"], told["interpreter"]) == ("environment", "v1.27.0")
    assert told["room"]["esp32c3"] == 0x1C0000 - 8192
    code, out, _ = run("core", "show", "--core", "c.bin")
    assert code == 0 and "option" in out


def test_the_installed_command(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).with_name("beacon-ota"), "image", "inspect", "nothing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "file_missing" in done.stderr and done.stdout == ""


def test_a_real_flash_image(run, real_core, tmp_path):
    (tmp_path / "loader.bin").write_bytes(real_core.bootloader)
    (tmp_path / "core.bin").write_bytes(real_core.data)
    code, out, err = run(
        "image", "flash", "--core", "core.bin", "--bootloader", "loader.bin",
        "--version", "1.0.0", "--insecure", "-o", "f.bin", "--json",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["core_length"] == real_core.image.length
    assert told["payload"] <= 96 * 1024 and told["room"] > 0
    code, out, _ = run("image", "inspect", "f.bin", "--json")
    assert json.loads(out)["facts"]["boots"] == "ota_0"
