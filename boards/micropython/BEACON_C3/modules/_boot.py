# The first Python of a core with the app frozen in. Nothing in the filesystem is needed to run, so
# a damaged one is made anew, and one that cannot be made is done without. The port's own _boot.py
# would wait for a person instead, for ever.

import gc

import vfs
from flashbdev import bdev


def mount():
    try:
        vfs.mount(bdev, "/")
    except OSError:
        vfs.VfsLfs2.mkfs(bdev)
        vfs.mount(vfs.VfsLfs2(bdev), "/")


try:
    if bdev:
        mount()
except Exception as error:
    print("no filesystem:", repr(error))

gc.collect()
