"""The fault matrix, played on virtual beacons. A case is named by what goes wrong, in the order of
the dimensions: ``stall+404+ok+hang``.

What goes wrong outside of the image does so until the first attempt has failed; the attempts that
follow meet a sound world. A slot that was given up stays given up until the power was away.
"""

import json
from pathlib import Path
from typing import Any

from beacon_ota.campaign.faults import matrix
from beacon_ota.campaign.faults.matrix import Mix
from beacon_ota.campaign.rig import builds, invariants
from beacon_ota.campaign.rig.bench import LATEST, Bench, bench, scratch
from beacon_ota.campaign.rig.builds import Shelf
from beacon_ota.campaign.rig.http_server import FOREIGN, Fault, Request
from beacon_ota.campaign.rig.invariants import Evidence, Settled
from beacon_ota.campaign.rig.orchestrator import PLAN
from beacon_ota.campaign.runner import Options, Outcome, Plan
from beacon_ota.errors import UsageError
from beacon_ota.images import boards
from beacon_ota.virtual.flash.nor import SECTOR
from beacon_ota.virtual.net.network import Faults
from beacon_ota.virtual.radio.vhci import Advertiser
from beacon_ota.wire.report import FINAL

SCALE = 20.0
DEADLINE = 60.0  # real seconds at that scale for all attempts, and for the update after them
SLOWER = (4, 12)  # when something was wrong: the machine may be busy
FIRST, SECOND, THIRD = "1.0.0", "2.0.0", "3.0.0"
ROLLOUT = {**PLAN, "retry": {"limit": matrix.ATTEMPTS, "pauses": ["30s"]}}
POLICY = {"stall_s": 10, "give_up_s": 600, "trial_s": 40}
BAD = 2  # the sector of the slot that fails
ETAG = 'W/"changed-gzip"'  # as a proxy leaves it that compresses
RESUME = 20_000  # bytes after which a connection ends that has to be resumed
STRANGE = 5  # answers that are a stranger's: fewer than the beacon has tries
TRIAL_LIMIT = 40_000  # ms, in the place of stage 0's quarter of an hour

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


def plan(folder: Path, options: Options) -> Plan:
    """Build the releases; list cases that cover all pairs, and every fault alone."""
    prepare(Shelf(folder))
    cases = dict.fromkeys(mix.name for mix in (*matrix.singles(), *matrix.pairs(options.seed)))
    sizes = {name: len(values) for name, values in matrix.DIMENSIONS.items()}
    return Plan(list(cases)[:: options.every], {"values": sizes, "cases": len(cases)})


def prepare(shelf: Shelf, images: tuple[str, ...] | None = None) -> None:
    """Build the releases: all of them, or some of the ones under test."""
    if shelf.fresh(str(images)):
        return
    shelf.clear()
    shelf.put(FIRST, builds.build(FIRST))
    shelf.put(THIRD, builds.build(THIRD))
    for value in matrix.IMAGE:
        if images is None or value.name in images:
            shelf.put(f"{SECOND}-{value.name}", builds.build(SECOND, changes(value.name)))
    shelf.finish(str(images))


def changes(image: str) -> dict[str, str]:
    """Return the files of a broken release that differ from the app's."""
    if image in _MAIN:
        return {"main.py": _MAIN[image]}
    if image in _CHANGED:
        path, text, instead = _CHANGED[image]
        whole = builds.source("app", *path.split("/"))
        if whole.count(text) != 1:
            raise UsageError("fault_text", f"{image}: nothing to change in {path}", found=text)
        return {path: whole.replace(text, instead)}
    return {}


def case(name: str, folder: Path, options: Options) -> Outcome:
    """Run one case, and again more slowly when something was wrong: the machine may be busy."""
    try:
        mix = Mix.parse(name)
    except (ValueError, KeyError):
        raise UsageError(
            "case_name", "no such case", found=name, expected="network+server+flash+image"
        ) from None
    shelf = Shelf(folder)
    word, wrong = run(mix, shelf)
    first = wrong
    for slower in SLOWER:
        if wrong:
            word, wrong = run(mix, shelf, slower=slower)
    return Outcome(name, group(mix), word, wrong, first=first)


def group(mix: Mix) -> str:
    """Return what a case is counted under: by what its first attempt has to end."""
    _, stage, code = matrix.chain(mix)[0]
    return f"{stage}/{code}" if stage else "success"


def run(mix: Mix, shelf: Shelf, *, slower: float = 1) -> tuple[str, list[str]]:
    """Play a case; return how its attempts ended, and what is wrong."""
    limit = builds.source("stage0", "boot.py").replace("900_000", str(TRIAL_LIMIT))
    stage0 = {"boot.py": limit.encode()} if mix.image.name == "hang-fed" else None
    policy = {**POLICY, "give_up_s": 120} if mix.network.name == "wrong-network" else POLICY
    content = builds.flash_image(shelf.get(FIRST), stage0=stage0, policy=policy)
    with (
        scratch() as folder,
        bench(content, folder, scale=SCALE / slower, record=True) as b,
    ):
        return _Run(mix, shelf, b, DEADLINE * slower).judged()


class _Run:
    """A case under way. What is called by the front runs in its loop."""

    def __init__(self, mix: Mix, shelf: Shelf, b: Bench, deadline: float):
        self._mix, self._shelf, self._b, self._deadline = mix, shelf, b, deadline
        self._chain = matrix.chain(mix)
        self._sound = self._offered = self._restart = False
        self._strange: dict[str, int] = {}  # answers of a stranger's, by what was asked
        self._cycle = any(code == "no_slot" for _, _, code in self._chain)
        self._firmware = ""
        self._slot = next(
            part.offset for part in boards.load_board(builds.DEVICE).table if part.name == "ota_1"
        )
        b.orchestrator.front.judge = self._judge
        b.orchestrator.front.answering = self._answering
        _wear(b, mix.flash.name, self._slot + BAD * SECTOR)
        if mix.flash.name == "nvs-full":
            b.beacon.fill_nvs()
        elif mix.flash.name == "nvs-worn":
            b.beacon.wear_nvs(1)

    def judged(self) -> tuple[str, list[str]]:
        b, mix = self._b, self._mix
        orchestrator = b.orchestrator
        orchestrator.register(builds.BEACON, builds.KEY, builds.DEVICE)
        image = self._shelf.get(f"{SECOND}-{mix.image.name}")
        self._firmware = orchestrator.upload(image, SECOND, builds.DEVICE)
        further = orchestrator.upload(self._shelf.get(THIRD), THIRD, builds.DEVICE)
        orchestrator.roll_out(self._firmware, ROLLOUT)
        b.beacon.power_on()
        b.wait(self._over, self._deadline, "")
        rows = orchestrator.attempts(self._firmware)
        ends = [(row["result"] or "", row["failed_in"] or "", row["code"] or "") for row in rows]
        settled = self._settled(rows)
        orchestrator.roll_out(further, ROLLOUT)
        b.wait(lambda: self._updated(further), self._deadline, "")
        word = ", then ".join(" ".join(filter(None, end)) for end in ends) or "nothing"
        return word, self._wrong(ends, settled, further)

    def _wrong(self, ends: list, settled: Settled, further: str) -> list[str]:
        evidence = self._evidence(settled, further)
        wrong = []
        if ends != self._chain:
            wrong.append(f"expected {self._chain}, found {ends}")
        said = {(entry[2], entry[3]) for entry in settled.journal}
        written = self._chain[matrix.unwritten(self._mix) :]
        wrong += [
            f"the journal never said {stage}/{code}"
            for _, stage, code in written
            if stage and (stage, code) not in said
        ]
        if any(row["detail"] == "polled from the old image" for row in settled.attempts):
            wrong.append("the beacon never said what happened")
        numbers = [entry[0] for entry in settled.journal]
        if len(numbers) != len(set(numbers)):
            wrong.append("a journal entry was taken twice")
        return [
            *wrong,
            *invariants.booted(evidence),
            *invariants.intact(evidence),
            *invariants.goes_on(evidence),
            *invariants.serves(evidence),
        ]

    # -- in the front's loop

    def _judge(self, request: Request) -> Fault | None:
        foreign = self._foreign(request)
        if foreign is not None:
            return foreign
        if request.method == "POST" and request.path.endswith("/ota_status"):
            self._reported(json.loads(request.body))
        if self._sound or not request.path.endswith("/download"):
            return None
        resumed = "range" in request.headers
        name = self._mix.server.name
        if name == "restart" and not resumed:
            self._restart = True
            return Fault(close=RESUME)
        return {
            "404": Fault(status=404),
            "500": Fault(status=500),
            "503": Fault(status=503, retry_after=1),
            "short": Fault(close=0),
            "long": Fault(more=1000),
            "lie": Fault(lie=1000),
            "other": Fault(other=True),
            "etag": Fault(etag=ETAG) if resumed else Fault(close=RESUME, etag=ETAG),
        }.get(name)

    def _foreign(self, request: Request) -> Fault | None:
        """A stranger's answer, where one is due; each time another one."""
        name = self._mix.server.name
        asked = _asked(request)
        if asked == "trial":
            self._fill()
        when = {
            "foreign-poll": ("poll",),
            "foreign-download": ("download",),
            "foreign-verifying": ("verifying", "rebooting"),
            "foreign-trial": ("trial",),
            "foreign-final": FINAL,
        }
        if asked not in when.get(name, ()):
            return None
        met = self._strange.get(asked, 0)
        if self._sound if asked == "trial" else met >= STRANGE:
            return None
        self._strange[asked] = met + 1
        # Each of the answers is somewhere the first one, and the last one.
        return FOREIGN[(met + list(when).index(name)) % len(FOREIGN)]

    def _reported(self, doc: dict[str, Any]) -> None:
        if doc.get("update_status") in FINAL:
            self._heal()

    async def _answering(self, request: Request, status: int) -> None:
        if request.path.startswith(LATEST) and status == 200 and not self._offered:
            self._offered = True
            if self._mix.flash.name == "flip":  # from here on: reading takes longer, imports too
                self._b.beacon.flip_bits({self._slot + BAD * SECTOR + 100: 0x10})
            self._b.beacon.link.faults = {
                "reset": Faults(reset_after=30_000),
                "stall": Faults(stall_after=30_000),
                "slow": Faults(throttle=60_000),
                "loss": Faults(loss=0.05),
                "wifi-off": Faults(drop_after=40_000),
                "names-gone": Faults(names=False),
            }.get(self._mix.network.name, Faults())
        lost = self._mix.network.name == "wrong-network" and not self._sound
        if lost and request.path.endswith("/download"):
            self._b.point.password = b"changed"
            self._b.beacon.wlan.drop()

    def _fill(self) -> None:
        """Let NVS be full from a trial on, where the case wants that."""
        if self._mix.flash.name == "nvs-fills" and not self._sound:
            self._b.beacon.fill_nvs()

    def _heal(self) -> None:
        self._sound = True
        if self._mix.flash.blind:
            self._b.beacon.drain_nvs()
            self._b.beacon.wear_nvs(0)
        self._b.beacon.link.faults = Faults()
        self._b.point.password = builds.PASSWORD.encode()

    # -- in the campaign's thread

    def _over(self) -> bool:
        b = self._b
        if b.beacon.boot and b.beacon.boot.slot == "ota_1":
            self._fill()
        if self._restart:
            self._restart = False
            b.orchestrator.close()
            b.orchestrator.open()
        if not self._sound and self._ended():
            self._heal()
        if self._mix.network.name == "names-gone" and b.confirmed(1):
            b.beacon.link.faults = Faults()  # where NVS takes no end, it is over all the same
        rows = b.orchestrator.attempts(self._firmware)
        ended = [row for row in rows if row["result"]]
        if ended and self._sound:
            _wear(b, "", 0)
        if self._cycle and ended and ended[-1]["code"] == "no_slot":
            self._cycle = False
            b.beacon.power_cut()
            b.beacon.power_on()
        return len(ended) >= len(self._chain) and b.quiet

    def _ended(self) -> bool:
        """Has the beacon ended an attempt, as far as its own memory says?"""
        record = self._b.beacon.setting("attempt")
        return isinstance(record, bytes) and json.loads(record).get("status") in FINAL

    def _updated(self, further: str) -> bool:
        rows = self._b.orchestrator.attempts(further)
        radio = self._b.beacon.bluetooth
        up = isinstance(radio, Advertiser) and radio.advertising is not None
        return any(row["result"] == "success" for row in rows) and self._b.quiet and up

    def _settled(self, rows: list[dict[str, Any]]) -> Settled:
        b = self._b
        slot = b.beacon.boot.slot if b.beacon.boot else None
        tried = sum(boot.slot == "ota_1" for boot in b.beacon.boots)
        return Settled(slot, False, tried, rows, b.orchestrator.journal(builds.BEACON))

    def _evidence(self, settled: Settled, further: str) -> Evidence:
        b = self._b
        radio = b.beacon.bluetooth
        assert isinstance(radio, Advertiser)
        return Evidence(
            "broken" if self._mix.image.ends else "good",
            "ota_0",
            "ota_1",
            b.orchestrator.firmware(SECOND)["checksum"],
            (FIRST, SECOND, THIRD),
            settled,
            b.orchestrator.attempts(further),
            [(boot.slot, boot.ended, boot.phase) for boot in b.beacon.boots],
            0,
            {
                key: value
                for (space, key), value in b.beacon.settings().items()
                if space == "beacon"
            },
            radio.data if radio.advertising is not None else b"",
            len(radio.values),
            b.beacon.wlan.connected,
            b.beacon.powered,
            {key: value for key, value in builds.GIVEN.items() if key != "policy"},
        )


def _asked(request: Request) -> str:
    """What a beacon wants: ``poll``, ``trial``, ``download``, or the word that it reports."""
    if request.method == "POST":
        return json.loads(request.body).get("update_status", "")
    if request.path.startswith(LATEST):
        return "trial" if "state=trial" in request.target else "poll"
    return "download" if request.path.endswith("/download") else ""


def _wear(b: Bench, kind: str, offset: int) -> None:
    """Let a sector fail in one way; with "", let all be well."""
    faults = b.flash.faults
    faults.fail_erase = {offset // SECTOR} if kind == "erase" else set()
    faults.fail_program = {offset // SECTOR} if kind == "program" else set()
    faults.stuck = {offset + at: 0xFF for at in range(64)} if kind == "stuck" else {}
    if not kind and faults.flips:
        b.beacon.flip_bits({})
