# Plans a download: for each sector of the release, whether its bytes are in flash already. Loaded
# for that only. ota/take.py takes those that are.
#
# The orchestrator's block index has a hash of every sector. Without one (an older orchestrator) the
# signed manifest says whether the release has the core that runs. Both are hints: what they promise
# wrongly is found out by the hash of the whole slot, and then all of the release is downloaded.

import asyncio
import json
import time
from binascii import hexlify
from hashlib import sha256

from micropython import const
from net.http import HttpError

from ota.image import image_length
from ota.slots import SECTOR

# Where the bytes of a sector are. Those that are nowhere (0) are downloaded.
_TARGET = const(1)  # in the slot that is written
_RUNNING = const(2)  # in the running slot

_HASH = const(8)  # bytes of each sector's SHA-256 in the index
_MAX_SECTORS = const(512)  # of a release whose index the heap has room for
_PIECE = const(1024)
_TURN = const(12)  # ms after which other tasks may run
_TOTAL = const(45000)  # ms to wait for the index


# Returns one byte for each sector of the release: 0, _TARGET or _RUNNING. `fields` are those of the
# signed manifest, `part` is the slot that will be written.
async def prepare(beacon, attempt, fields, part):
    size = fields["size"]
    plan = bytearray((size + SECTOR - 1) // SECTOR)
    running = beacon.slots.running_app
    index = await _receive(beacon, attempt, len(plan))
    if index:
        await compare(index, plan, size, (part, running))
    elif _is_current(fields.get("core")):
        for sector in range(min((image_length(running, True) + SECTOR - 1) // SECTOR, len(plan))):
            plan[sector] = _RUNNING
    if fields.get("encryption"):
        plan[0] = 0  # its first byte, decrypted, tells a wrong key before flash is written
    return plan


# Whether the running app says that it has the core with this SHA-256 under it.
def _is_current(core):
    try:
        with open("/app/app.json") as f:
            return json.load(f)["core_sha256"] == core
    except (OSError, KeyError):  # an app that is frozen into the core need not say it
        return False


# Returns the block index, None without a usable one.
async def _receive(beacon, attempt, count):
    if count > _MAX_SECTORS:
        return None
    api = beacon.api
    index = bytearray(_HASH * count)
    record = attempt.record
    target = "/firmwares/%s/blocks?attempt=%s" % (record["firmware_id"], record["attempt_id"])
    status = 0
    try:
        deadline = time.ticks_add(time.ticks_ms(), _TOTAL)
        patience = 1000 * beacon.store.policy("stall_s")
        connection = await api.open_request("GET", target, b"", (), patience, deadline)
        try:
            status = connection.status
            if status == 200:
                await connection.read_exactly(index)
                # The index has the right length, too, if this is its hash.
                api.check_mac(connection, hexlify(sha256(index).digest()).decode())
                record["cost"][0] += len(index)
                return index
        finally:
            connection.close()
        detail = "status %d" % status
    except HttpError as error:
        detail = error.detail
    api.trust_address(status > 0)
    if status not in (401, 404):  # those are the answers of an orchestrator that has no index
        beacon.journal.write("adapt", "index", detail)
    return None


# Plans the sectors whose hash in one of the two slots is that of the index.
async def compare(index, plan, size, slots):
    piece = bytearray(_PIECE)
    yielded = time.ticks_ms()
    for sector in range(len(plan)):
        wanted = index[_HASH * sector : _HASH * (sector + 1)]
        for source in (_TARGET, _RUNNING):
            sha = sha256()
            try:
                for at in range(0, min(SECTOR, size - SECTOR * sector), _PIECE):
                    slots[source - 1].readblocks(sector, piece, at)
                    sha.update(memoryview(piece)[: size - SECTOR * sector - at])
            except OSError:  # the running slot may be smaller
                continue
            if sha.digest()[:_HASH] == wanted:
                plan[sector] = source
                break
        if time.ticks_diff(time.ticks_ms(), yielded) >= _TURN:
            await asyncio.sleep_ms(0)
            yielded = time.ticks_ms()
