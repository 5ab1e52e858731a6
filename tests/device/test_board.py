"""The app onto a board, with mpremote's own transport and a real interpreter's REPL."""

import fcntl
import os
import pty
import subprocess
import sys
import tty
from pathlib import Path

import pytest

from beacon_ota import paths
from beacon_ota.device import board
from beacon_ota.errors import BeaconOtaError
from beacon_ota.images import app_folder, flash, littlefs

# What a board is to its REPL: a LittleFS at /, kept in a file, and a machine module.
BOARD = """
def plug(image, blocks):
    import sys, vfs
    file = open(image, "r+b")
    class Device:
        def readblocks(self, n, buf, off=0):
            file.seek(n * 4096 + off)
            file.readinto(buf)
        def writeblocks(self, n, buf, off=0):
            file.seek(n * 4096 + off)
            file.write(buf)
            file.flush()
        def ioctl(self, op, arg):
            if op == 6:
                self.writeblocks(arg, b"\\xff" * 4096)
                return 0
            return {4: blocks, 5: 4096}.get(op, 0)
    class Machine:
        def WDT(timeout):
            pass
        def reset():
            raise SystemExit
    sys.modules["machine"] = Machine
    vfs.umount("/")
    vfs.mount(Device(), "/")
plug(%r, %d)
del plug
"""

# The running slot's app filesystem, mounted as stage 0 does.
RELEASE = """
def slot(file, blocks):
    import vfs
    class Slot:
        def readblocks(self, n, buf, off=0):
            file.seek(n * 512 + off)
            file.readinto(buf)
        def writeblocks(self, n, buf, off=0):
            raise OSError(30)
        def ioctl(self, op, arg):
            return {4: blocks, 5: 512}.get(op, 0)
    vfs.mount(Slot(), "/app", readonly=True)
"""


class Board:
    """An interpreter at its prompt, with a serial port."""

    def __init__(self, folder, blocks=64, files=None, before="", after=""):
        self.image = folder / "vfs.bin"
        self.image.write_bytes(littlefs.build_filesystem(files or {}, 4096, blocks))
        self.ends = pty.openpty()
        tty.setraw(self.ends[1])
        self.port = os.ttyname(self.ends[1])
        command = Path(sys.executable).with_name("micropython")
        script = before + BOARD % (str(self.image), blocks) + after
        self.process = subprocess.Popen(
            [command, "-X", "heapsize=160K", "-i", "-c", script],
            stdin=self.ends[0],
            stdout=self.ends[0],
            stderr=subprocess.DEVNULL,
        )

    def was_reset(self):
        """Wait for its reset, which ends the process."""
        return self.process.wait(60) == 0

    def files(self):
        return littlefs.read_filesystem(self.image.read_bytes()).files

    def close(self):
        self.process.kill()
        self.process.wait()
        for end in self.ends:
            os.close(end)


@pytest.fixture
def plug(tmp_path):
    """Make boards; they are unplugged in the end."""
    made = []

    def make(**kwargs):
        made.append(Board(tmp_path, **kwargs))
        return made[-1]

    yield make
    for found in made:
        found.close()


TEXTS = {"main.py": b"def run():\n    pass\n", "pkg/__init__.py": b"", "pkg/deep/m.py": b"x = 1\n"}


def deploy(found, texts=TEXTS, **kwargs):
    wanted = board.board_files(texts, "esp32c3")
    return board.deploy_app(found.port, wanted, fresh=False, **kwargs), wanted


def refuse(function, code):
    with pytest.raises(BeaconOtaError) as caught:
        function()
    assert caught.value.code == code, caught.value
    return caught.value


def test_an_empty_board_gets_stage_0_and_the_app(plug):
    found, seen = plug(), []
    done, wanted = deploy(found, progress=seen.append)
    assert {f"/{path}": data for path, data in found.files().items()} == wanted
    assert found.files()["boot.py"] == flash.stage0_files()["boot.py"]
    assert b'"insecure":true' in found.files()["app/app.json"]
    assert set(done.written) == set(wanted) and done.removed == () and done.unchanged == 0
    assert seen == sorted(seen) and seen[-1] == done.size
    assert found.was_reset()


def test_only_what_differs_is_sent_and_leftovers_go(plug):
    old = {path[1:]: data for path, data in board.board_files(TEXTS, "esp32c3").items()}
    mine = {"notes.txt": b"mine", "lib/x.py": b"mine"}
    gone = {"app/gone.mpy": b"x", "app/old/y.mpy": b"y"}
    found = plug(files={**old, **mine, **gone, "app/main.mpy": b"other"})
    done, wanted = deploy(found)
    assert done.written == ("/app/main.mpy",)
    assert set(done.removed) == {"/app/gone.mpy", "/app/old/y.mpy", "/app/old/"}
    assert done.unchanged == len(wanted) - 1
    assert found.files() == {path[1:]: data for path, data in wanted.items()} | mine


def test_the_whole_app_of_the_project(plug):
    texts = app_folder.read_sources(paths.data_path("firmware", "app"))
    found = plug(blocks=112)
    _, wanted = deploy(found, texts)
    assert {f"/{path}": data for path, data in found.files().items()} == wanted


def test_a_board_without_room(plug):
    found = plug(blocks=8)
    refuse(lambda: deploy(found), "board_full")
    assert found.was_reset()


def test_a_board_that_runs_a_release_is_left_alone(plug, tmp_path):
    image = tmp_path / "app.bin"
    image.write_bytes(littlefs.build_filesystem({"main.mpy": b"x"}, 512))
    blocks = image.stat().st_size // 512
    # The host's files are out of reach once the board's own are mounted.
    script = f"{RELEASE}\nopened = open({str(image)!r}, 'rb')\n"
    found = plug(before=script, after=f"\nslot(opened, {blocks})\n")
    refuse(lambda: deploy(found), "board_release")
    assert found.files() == {} and found.was_reset()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_board_runs_again_after_an_interruption(plug, error):
    found = plug()

    def progress(done):
        if done > 1000:
            raise error

    with pytest.raises(error):
        deploy(found, progress=progress)
    assert found.was_reset()


@pytest.mark.parametrize("half", [0, 1, 100])
def test_a_board_runs_again_after_half_a_command(plug, monkeypatch, half):
    """Whatever its prompt is at: nothing of what was half typed is executed."""
    from mpremote.transport_serial import SerialTransport

    found, sent = plug(), []
    whole = SerialTransport.raw_paste_write

    def write(self, command):
        sent.append(command)
        if len(sent) < 3:
            return whole(self, command)
        self.serial.write(command[:half])
        raise KeyboardInterrupt

    monkeypatch.setattr(SerialTransport, "raw_paste_write", write)
    with pytest.raises(KeyboardInterrupt):
        deploy(found)
    assert found.was_reset()


def test_a_file_that_arrives_changed(plug, monkeypatch):
    found = plug()
    monkeypatch.setattr(board, "_send", lambda *_: None)
    refuse(lambda: deploy(found), "board_failed")
    assert found.was_reset()


def test_a_board_that_never_answers_is_reset_by_its_lines(monkeypatch):
    from serial.urlhandler import protocol_loop

    seen = []
    for line in ("rts", "dtr"):

        def update(self, line=line):
            seen.append((line, getattr(self, f"_{line}_state")))

        monkeypatch.setattr(protocol_loop.Serial, f"_update_{line}_state", update)
    refuse(lambda: board.deploy_app("loop://", {"/x": b""}, patience=1), "board_silent")
    pulse = [("dtr", False), ("rts", True), ("rts", False)]
    assert any(seen[at : at + 3] == pulse for at in range(len(seen)))


def test_a_board_that_is_unplugged(plug):
    found = plug()

    def progress(done):
        found.process.kill()
        os.close(found.ends[0])
        found.ends = found.ends[1:]

    refuse(lambda: deploy(found, progress=progress), "port_lost")


def test_a_port_that_another_program_uses(plug):
    found = plug()
    fcntl.flock(found.ends[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    refuse(lambda: deploy(found), "port_busy")


def test_nobody_at_the_prompt(tmp_path):
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    try:
        error = refuse(
            lambda: board.deploy_app(os.ttyname(theirs), {"/x": b""}, patience=1), "board_silent"
        )
        assert "MicroPython" in error.message
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_port_that_is_not_there(tmp_path):
    refuse(lambda: board.deploy_app(str(tmp_path / "tty"), {}), "port_missing")


def test_an_app_that_does_not_compile_never_gets_to_the_port():
    refuse(lambda: board.board_files({"main.py": b"x = ("}, "esp32c3"), "app_syntax")
    refuse(lambda: board.board_files(TEXTS, "esp32c3", "1"), "app_version")
