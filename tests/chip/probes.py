"""Releases that tell their measures on the console, for the numbers of docs/emulated-c3.md.

A line is ``probe <what> <name>=<number> …``. Microseconds are the chip's own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from beacon_ota.campaign.rig import builds

LINE = re.compile(r"^probe (\S+)((?: \w+=-?\d+)+)$", re.MULTILINE)

# `us`: since the start; `alloc`, `free`: MicroPython's heap after a collection, where `free` counts
# what it may still take from ESP-IDF; `idf`, `block`: what ESP-IDF has left, and in one piece.
_PROBE = """
import asyncio, esp32, gc, time

def look(what):
    gc.collect()
    parts = esp32.idf_heap_info(esp32.HEAP_DATA)
    print("probe %s us=%d alloc=%d free=%d idf=%d block=%d" % (
        what, time.ticks_us(), gc.mem_alloc(), gc.mem_free(),
        sum([part[1] for part in parts]), max([part[2] for part in parts])))

def took(what, since):
    print("probe %s us=%d" % (what, time.ticks_diff(time.ticks_us(), since)))

installing = False

# A turn of others is what a sleep takes longer than it should. One that began before the attempt is
# none of its turns.
async def turns():
    while True:
        counts = installing
        before = time.ticks_us()
        await asyncio.sleep_ms(5)
        late = time.ticks_diff(time.ticks_us(), before) - 5000
        if counts and late > 10000:
            print("probe turn us=%d at=%d" % (late, before))

async def heap():
    most = 0
    while True:
        gc.collect()
        if gc.mem_alloc() > most:
            most = gc.mem_alloc()
            look("installing" if installing else "running")
        await asyncio.sleep_ms(100)
"""
_MAIN = (
    ("import asyncio\n", "import probe\nprobe.look('main')\nimport asyncio\n"),
    (
        "        from net.wifi import Wifi\n",
        "        probe.look('radio')\n        from net.wifi import Wifi\n",
    ),
    (
        "        self.wifi = Wifi(self.store, self.journal)\n",
        "        self.wifi = Wifi(self.store, self.journal)\n        probe.look('wifi_on')\n",
    ),
    ("    async def run(self):\n", "    async def run(self):\n        probe.look('wired')\n"),
    (
        "        asyncio.create_task(self.record_good_boot())\n",
        "        asyncio.create_task(self.record_good_boot())\n"
        "        asyncio.create_task(probe.{task}())\n",
    ),
)
_CHANGES = {
    "ota/agent.py": (
        (
            "        await self._deliver_report()\n        self._reset_if_out_of_memory()\n"
            "        status, offer, retry",
            "        import probe\n        probe.look('ask')\n"
            "        await self._deliver_report()\n        self._reset_if_out_of_memory()\n"
            "        status, offer, retry",
        ),
        (
            '        self._set_poll_result("ok")\n',
            '        self._set_poll_result("ok")\n        probe.look("asked")\n',
        ),
        (
            "        from ota import install\n",
            "        import probe\n        probe.look('idle')\n        probe.installing = True\n"
            "        from ota import install\n",
        ),
    ),
    "ota/install.py": (
        (
            "        slot, head = await self._download(fields)\n",
            "        import probe, time\n        since = time.ticks_us()\n"
            "        slot, head = await self._download(fields)\n"
            "        probe.took('download', since)\n",
        ),
    ),
    "ota/verify.py": (
        (
            "        await _check_signatures(payload, missing, pairs)\n",
            "        import probe, time\n        since = time.ticks_us()\n"
            "        await _check_signatures(payload, missing, pairs)\n"
            "        probe.took('signature', since)\n",
        ),
    ),
}


def changes(task: str) -> dict[str, str]:
    """Return the changed files of a release that runs a probe all the time: turns or heap."""
    found = {"probe.py": _PROBE}
    main = tuple((text, instead.replace("{task}", task)) for text, instead in _MAIN)
    for path, pairs in {**_CHANGES, "main.py": main}.items():
        source = builds.read_source("app", *path.split("/"))
        for text, instead in pairs:
            assert source.count(text) == 1, (path, text)
            source = source.replace(text, instead)
        found[path] = source
    return found


@dataclass(frozen=True)
class Found:
    """One line of a probe."""

    what: str
    values: dict[str, int]


def read(console: str) -> list[Found]:
    """Return what probes said."""
    return [
        Found(what, {k: int(v) for k, v in re.findall(r"(\w+)=(-?\d+)", values)})
        for what, values in LINE.findall(console)
    ]


def first(found: Iterable[Found], what: str) -> dict[str, int]:
    """Return the first line about something."""
    return next(one.values for one in found if one.what == what)


def most(found: Iterable[Found], what: str, name: str) -> dict[str, int]:
    """Return the line about something with the highest number of a name."""
    return max((one.values for one in found if one.what == what), key=lambda v: v[name])
