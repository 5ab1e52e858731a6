"""``beacon-ota flash`` and ``beacon-ota deploy``, as typed."""

import json

import pytest

from beacon_ota import cli
from beacon_ota.virtual.flash.nor import Flash
from tests.device.loader import Chip, plugged
from tests.device.test_board import TEXTS, Board


@pytest.fixture
def run(capsys):
    """Run a command: (exit code, standard output, standard error)."""

    def call(*args):
        code = 0
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_flash(run, tmp_path, flash_factory):
    image = flash_factory()
    (tmp_path / "f.bin").write_bytes(image)
    with plugged(Chip(Flash(b"\0" * len(image)))) as chip:
        code, out, err = run("flash", chip.port, tmp_path / "f.bin", "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert told["mac"] == "60:55:8f:01:02:03" and told["flash_size"] == 4 << 20
        assert chip.flash.read(0x8000, 0x7000) == image[0x8000:0xF000]
    with plugged(Chip(Flash(b"\0" * len(image)))) as chip:
        code, out, err = run("flash", chip.port, tmp_path / "f.bin", "--no-stub")
        assert code == 0 and "verified" in out and not chip.stub


def test_the_address_of_a_chip(run, tmp_path, flash_factory):
    content = b"\xa5" * (4 << 20)
    with plugged(Chip(Flash(content))) as chip:
        assert run("flash", chip.port, "--address") == (0, "60:55:8f:01:02:03\n", "")
        assert bytes(chip.flash.read(0, len(content))) == content
    with plugged(Chip(Flash(content))) as chip:
        code, out, _ = run("flash", chip.port, "--address", "--json")
        assert code == 0 and json.loads(out)["address"] == "60:55:8f:01:02:03"
    with plugged(Chip(Flash(content), chip_id=9)) as chip:
        code, _, err = run("flash", chip.port, "--address")
        assert code != 0 and "chip_other" in err
    (tmp_path / "f.bin").write_bytes(flash_factory())
    for args in ((), (tmp_path / "f.bin", "--address")):
        code, _, err = run("flash", "/dev/nowhere", *args)
        assert code == 2 and "options" in err


def test_flash_refuses_by_name(run, tmp_path, release_factory):
    (tmp_path / "r.bin").write_bytes(release_factory())
    code, _, err = run("flash", "/dev/nowhere", tmp_path / "r.bin")
    assert code == 1 and "flash_expected" in err
    code, _, err = run("flash", "/dev/nowhere", tmp_path / "none")
    assert code == 2 and "file_missing" in err


def test_deploy(run, tmp_path):
    folder = tmp_path / "app"
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    board = Board(tmp_path)
    try:
        code, out, err = run("deploy", board.port, "--app", folder, "--no-fresh", "--json")
        assert (code, err) == (0, "")
        assert "/app/main.mpy" in json.loads(out)["written"]
        assert "boot.py" in board.files()
    finally:
        board.close()


def test_deploy_refuses_by_name(run, tmp_path):
    code, _, err = run("deploy", tmp_path / "tty")
    assert code == 3 and "port_missing" in err
    code, _, err = run("deploy", tmp_path / "tty", "--app", tmp_path)
    assert code == 1 and "app_main" in err
