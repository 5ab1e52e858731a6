"""The MicroPython board: its own _boot.py under the interpreter, and what its manifest freezes."""

import subprocess
import sys
from pathlib import Path

import pytest

from beacon_ota import paths
from beacon_ota.images import littlefs

BOARD = paths.data_path("boards", "micropython", "BEACON_C3")

# Runs a _boot.py over a filesystem in RAM, then says what there is and writes a file.
RUN = """
import os, sys, vfs
class Device:
    def __init__(self, data, works):
        self.data = data
        self.works = works
    def readblocks(self, n, buf, off=0):
        buf[:] = self.data[n * 4096 + off : n * 4096 + off + len(buf)]
    def writeblocks(self, n, buf, off=0):
        if not self.works:
            raise OSError(5)
        self.data[n * 4096 + off : n * 4096 + off + len(buf)] = buf
    def ioctl(self, op, arg):
        if op == 6:
            self.writeblocks(arg, b"\\xff" * 4096)
            return 0
        return {4: len(self.data) // 4096, 5: 4096}.get(op, 0)
class flashbdev:
    bdev = None
with open(%r, "rb") as f:
    data = f.read()
with open(%r) as f:
    code = f.read()
if data:
    flashbdev.bdev = Device(bytearray(data), %r)
sys.modules["flashbdev"] = flashbdev
vfs.umount("/")
exec(code)
print("files", os.listdir("/"))
if data and %r:
    with open("/new", "w") as f:
        f.write("x")
    print("written", os.listdir("/"))
"""


def boot(tmp_path, image, works=True):
    file = tmp_path / "vfs.bin"
    file.write_bytes(image)
    script = RUN % (str(file), str(BOARD / "modules" / "_boot.py"), works, works)
    done = subprocess.run(
        [Path(sys.executable).with_name("micropython"), "-X", "heapsize=1M", "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


GOOD = littlefs.build_filesystem({"mine": b"kept"}, 4096, 16)


def test_a_good_filesystem_is_kept(tmp_path):
    assert boot(tmp_path, GOOD) == ["files ['mine']", "written ['mine', 'new']"]


@pytest.mark.parametrize(
    "image",
    [
        b"\xff" * 65536,
        b"\0" * 65536,
        b"\0" * 24 + GOOD[24:4096] + b"\xff" * 4096 + GOOD[8192:],
        bytes(byte ^ 0x5A for byte in GOOD),
    ],
    ids=["blank", "zeros", "damaged", "garbage"],
)
def test_a_damaged_one_is_made_anew_and_nobody_waits(tmp_path, image):
    assert boot(tmp_path, image) == ["files []", "written ['new']"]


def test_flash_that_fails_is_done_without(tmp_path):
    said = boot(tmp_path, b"\0" * 65536, works=False)
    assert said[0].startswith("no filesystem:") and said[-1] == "files []"


def test_a_board_without_vfs_starts(tmp_path):
    assert boot(tmp_path, b"") == ["files []"]


def test_the_manifest_names_files_that_exist():
    """Evaluate the manifest as MicroPython's tool does, with the paths it knows."""
    port = {"flashbdev.py", "inisetup.py", "machine.py"}  # in the port, v1.21 to v1.29
    frozen: list[str] = []

    def place(path):
        return (BOARD / path.replace("$(BOARD_DIR)", str(BOARD))).resolve()

    def freeze(path, names):
        assert path == "$(PORT_DIR)/modules" and set(names) <= port
        frozen.extend(names)

    def module(name, base_path=".", opt=None):
        assert (place(base_path) / name).is_file()
        frozen.append(name)

    def package(name, base_path=".", opt=None):
        folder = place(base_path)
        found = [file.relative_to(folder).as_posix() for file in folder.glob(f"{name}/**/*.py")]
        assert found
        frozen.extend(found)

    code = compile((BOARD / "manifest.py").read_text(), "manifest.py", "exec")
    names = {"freeze": freeze, "module": module, "package": package, "include": lambda path: None}
    exec(code, names)
    assert {"_boot.py", "boot.py", "main.py", "app/main.py", "app/ota/agent.py"} <= set(frozen)
    assert len(frozen) == len(set(frozen))


def test_the_build_asks_for_rollback():
    options = (BOARD / "sdkconfig.board").read_text().splitlines()
    assert "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y" in options
