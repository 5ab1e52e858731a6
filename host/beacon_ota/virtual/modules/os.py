# `os` with the names of the esp32 port: no environment, no shell, a uname().

import collections

import uos
from uos import (  # noqa: F401
    chdir,
    getcwd,
    ilistdir,
    listdir,
    mkdir,
    remove,
    rename,
    rmdir,
    stat,
    statvfs,
    unlink,
    urandom,
)

VfsFat = uos.VfsFat
VfsLfs2 = uos.VfsLfs2
mount = uos.mount
umount = uos.umount
sep = "/"

_Uname = collections.namedtuple("uname", ("sysname", "nodename", "release", "version", "machine"))


def uname():
    return _Uname("esp32", "esp32", "1.27.0", "v1.27.0 virtual", "Virtual beacon with ESP32C3")


def sync():
    pass
