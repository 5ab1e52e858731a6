"""Builds the releases of the fault matrix: a good one, and one for each defect of an image."""

from beacon_ota.campaign.faults import matrix
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.errors import UsageError

FIRST, SECOND, THIRD = "1.0.0", "2.0.0", "3.0.0"


_RUN = "def run():\n"


_MAIN = {
    "import": 'raise ValueError("broken release")\n',
    "hang": _RUN + "    import time\n    while True:\n        time.sleep(1)\n",
    "hang-fed": "import machine, time\n" + _RUN + "    dog = machine.WDT(timeout=30000)\n"
    "    while True:\n        dog.feed()\n        time.sleep(1)\n",
    "memory": _RUN + "    held = []\n    while True:\n        held.append(bytearray(1000))\n",
    "resets": "import machine\n" + _RUN + "    machine.reset()\n",
    "valid-then-dies": "from esp32 import Partition\n" + _RUN + "    Partition"
    '.mark_app_valid_cancel_rollback()\n    raise ValueError("broken release")\n',
}


# Files of the app that are changed: (path, text found there once, what stands in for it).
_CHANGED = {
    "task": (
        "main.py",
        '        start("radio", self.radio.run)\n',
        '        start("radio", self.radio.run)\n        start("broken", None)\n',
    ),
    "self-test": ("main.py", "        return settled and", "        return False and"),
    "offline": (
        "net/wifi.py",
        "    async def run(self):\n",
        "    async def run(self):\n        await asyncio.sleep(100000)\n",
    ),
}


def prepare_releases(shelf: ReleaseStore, images: tuple[str, ...] | None = None) -> None:
    """Build the releases: all of them, or some of the ones under test."""
    if shelf.is_current(str(images)):
        return
    shelf.clear()
    shelf.put(FIRST, builds.build_release(FIRST))
    shelf.put(THIRD, builds.build_release(THIRD))
    for value in matrix.IMAGE:
        if images is None or value.name in images:
            shelf.put(
                f"{SECOND}-{value.name}", builds.build_release(SECOND, changed_files(value.name))
            )
    shelf.mark_current(str(images))


def changed_files(image: str) -> dict[str, str]:
    """Return the files of a broken release that differ from the app's."""
    if image in _MAIN:
        return {"main.py": _MAIN[image]}
    if image in _CHANGED:
        path, text, instead = _CHANGED[image]
        whole = builds.read_source("app", *path.split("/"))
        if whole.count(text) != 1:
            raise UsageError("fault_text", f"{image}: nothing to change in {path}", found=text)
        return {path: whole.replace(text, instead)}
    return {}
