"""The machine's kernel and RAM file system: Debian's packages, Python's, and this project's code.

Nothing is installed on the computer, and nothing is run as root: debootstrap downloads the
packages, they are unpacked, and the little that their scripts would do is done here. What was
downloaded and unpacked is kept in ``build/bluez``.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.bluez.cpio import CpioWriter

SUITE = "bookworm"  # BlueZ 5.66, Linux 6.1, Python 3.11
PACKAGES = ("linux-image-amd64", "bluez", "dbus", "python3", "kmod", "iproute2")
# What the commands of the guest import, by the name of the package index.
WHEELS = ("bleak", "dbus-fast", "cryptography", "typer", "rich", "requests", "platformdirs")
PYTHON = "3.11"
MODULES = ("virtio_pci", "virtio_console", "virtio_net", "hci_vhci", "ecb", "cmac")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "bluez"
GUEST = Path(__file__).parent / "guest"
# Folders of Debian's packages that are not needed.
_SKIP = frozenset(
    (
        "boot",
        "lib/modules",
        "usr/lib/modules",
        "usr/lib/x86_64-linux-gnu/perl-base",
        "usr/share/doc",
        "usr/share/i18n",
        "usr/share/locale",
        "usr/share/man",
        "usr/share/perl5",
        "usr/share/zoneinfo",
        "var/cache",
    )
)
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/usr/sbin/nologin\n"
_GROUP = "root:x:0:\nmessagebus:x:100:\nbluetooth:x:101:\n"


@dataclass(frozen=True)
class Image:
    """What qemu boots."""

    kernel: Path
    ramdisk: Path


def missing_tools() -> list[str]:
    """Return the Debian packages that this computer lacks."""
    tools = {
        "qemu-system-x86_64": "qemu-system-x86",
        "debootstrap": "debootstrap",
        "dpkg-deb": "dpkg",
    }
    if os.geteuid():
        tools["fakeroot"] = "fakeroot"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [package for tool, package in tools.items() if shutil.which(tool, path=path) is None]


def build_image() -> Image:
    """Return the image, built of what is there already and of what is not."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    system = _unpack_system()
    site = _install_wheels()
    [kernel] = (system / "boot").glob("vmlinuz-*")
    ramdisk = FOLDER / "ramdisk.cpio"
    with ramdisk.open("wb") as out:
        archive = CpioWriter(out)
        for name, text in (("etc/passwd", _PASSWD), ("etc/group", _GROUP)):
            archive.add_folder("etc")
            archive.add(name, stat.S_IFREG | 0o644, text.encode())
        for name in ("dev", "proc", "sys", "run/dbus", "tmp", "root", "var/lib/bluetooth"):
            archive.add_folder(name)
        archive.add("var/run", stat.S_IFLNK | 0o777, b"/run")
        archive.add("init", stat.S_IFREG | 0o755, (GUEST / "init").read_bytes())
        _add_modules(archive, system)
        archive.add_tree(system, "", _SKIP)
        archive.add_folder("guest/site")
        archive.add_tree(site, "guest/site")
        archive.add_tree(GUEST, "guest")
        archive.add_folder("guest/host/beacon_ota")
        archive.add_folder("guest/host/beacon_ota/wire")
        archive.add_tree(ROOT / "firmware/app/wire", "guest/host/beacon_ota/wire")
        # The link to the folder above is there already, as a folder.
        archive.add_tree(ROOT / "host/beacon_ota", "guest/host/beacon_ota")
        archive.close()
    return Image(kernel, ramdisk)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _fill_once(folder: Path, fill) -> Path:
    """Return a folder that ``fill`` has filled, now or before."""
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=FOLDER) as made:
            fill(Path(made) / "made")
            (Path(made) / "made").rename(folder)
    return folder


def _unpack_system() -> Path:
    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=FOLDER) as downloads:
            environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
            command = ["debootstrap", "--variant=minbase", "--download-only"]
            command += [f"--include={','.join(PACKAGES)}", SUITE, downloads]
            if os.geteuid():
                command.insert(0, "fakeroot")
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            folder.mkdir()
            for package in sorted(Path(downloads).glob("var/cache/apt/archives/*.deb")):
                subprocess.run(["dpkg-deb", "-x", package, folder], check=True)

    return _fill_once(FOLDER / f"system-{_key(SUITE, *PACKAGES)}", fill)


def _install_wheels() -> Path:
    def fill(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-qq"]
        command += ["--target", str(folder), "--only-binary=:all:", "--implementation=cp"]
        command += ["--python-version", PYTHON, "--platform=manylinux2014_x86_64"]
        command += ["--platform=manylinux_2_28_x86_64", *_pin_versions()]
        subprocess.run(command, check=True)

    return _fill_once(FOLDER / f"site-{_key(PYTHON, *_pin_versions())}", fill)


def _pin_versions() -> list[str]:
    """Return the wheels in the versions that are installed here."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in WHEELS]


def _add_modules(archive: CpioWriter, system: Path) -> None:
    """Add the kernel's modules that are needed, and the order in which they are loaded."""
    found = {path.stem.replace("-", "_"): path for path in system.glob("lib/modules/**/*.ko")}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in found:  # built in
            return
        data = found[name].read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends.group(1).decode().split(",") if depends else []:
            add(other.replace("-", "_"))
        order.append(name)
        archive.add(f"modules/{name}.ko", stat.S_IFREG | 0o644, data)

    archive.add_folder("modules")
    for name in MODULES:
        add(name)
    lines = "".join(f"{name}\n" for name in order)
    archive.add("modules/order", stat.S_IFREG | 0o644, lines.encode())
