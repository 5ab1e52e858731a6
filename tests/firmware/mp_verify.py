# The beacon's verification of an offer: what it costs, what runs meanwhile, what its files may be.
# What is refused, and that the host says the same, is in tests/trust. Two throw-away keys signed
# the envelope.

import asyncio
import gc
import json
import os

import vfs
from ota import verify
from wire import manifest

FILE = verify.KEYS
NOW = 1_750_000_000


# The app's filesystem, writable here.
class Flash:
    def __init__(self):
        self.data = bytearray(40 * 512)

    def readblocks(self, n, buf, offset=0):
        at = n * 512 + offset
        buf[:] = self.data[at : at + len(buf)]

    def writeblocks(self, n, buf, offset=0):
        at = n * 512 + offset
        self.data[at : at + len(buf)] = buf

    def ioctl(self, op, arg):
        if op == 4:
            return 40
        if op == 5:
            return 512
        return 0


_flash = Flash()
vfs.VfsLfs2.mkfs(_flash, progsize=256, readsize=32)
vfs.mount(vfs.VfsLfs2(_flash, progsize=256, readsize=32), "/app")

ENVELOPE = {
    "payload": (
        "eyJjaGVja3N1bSI6ImM1YzVjNWM1YzVjNWM1YzVjNWM1YzVjNWM1YzVjNWM1YzVjNWM1YzVjNWM1YzVjNWM1YzVjNW"
        "M1YzVjNWM1YzUiLCJjb3JlIjoiMGUwZTBlMGUwZTBlMGUwZTBlMGUwZTBlMGUwZTBlMGUwZTBlMGUwZTBlMGUwZTBl"
        "MGUwZTBlMGUwZTBlMGUwZSIsImRldmljZV90eXBlIjoiZXNwMzJjMyIsImV4cGlyZXNfYXQiOjE3ODE1MzYwMDAsIm"
        "lzc3VlZF9hdCI6MTc0OTkxMzYwMCwibWluX3ZlcnNpb24iOiIxLjAuMCIsInJlcXVpcmVkIjpmYWxzZSwic2l6ZSI6"
        "MTYzODQwMCwidmVyc2lvbiI6IjEuMy4wIn0="
    ),
    "payloadType": manifest.TYPE,
    "signatures": [
        {
            "keyid": "71fd223dac0d5383",
            "sig": (
                "ZYReAslrrZ5Dx8ayP3dFSYEDGpVCeB7NexobWZvCec2Ik0oi9EioB9johCVmJ19w4s/AEtGsbh5hyUXPvDaDRhnnpm"
                "cUma/9Oii1hGFitIgrcIeP9EiZU1F265XPmIpEoFJ37DWAok3rTZbzSYNjPD+N2Wd+4LnOcGkvk0hSLe1HqXFxBBrk"
                "0s+8gIMKiOJcYlstWYX0vX50hzmtyKw0DE2IKEkBSHcS29lawKt06gfIUs5Zo7bUX5a6mW8OyDFwvUNiYw4F+lNgO6"
                "UxX0lWvhR9zA0Ot9h61seFBNcB0l+0dVxKLnfz7it2YMA/nQOzINEp0TFYj+nNnBJTsdBy59uBeX7fY2fYz3FG3MIP"
                "8qfbLg4Z46vRM2azqRfipKfjCMDAPHSPfln3RJzkxRkgA1/Etzb8y2u6EB1WBh5Ba13jrcFvDci0arX9lpUkCmJgto"
                "WgITUcCLbiK2sqFRU3wqNRY0YKMhwucNrNlIJkh+DSB3EBcaDlR0p2K7ZkWsRo"
            ),
        },
        {
            "keyid": "4934ddb702c58435",
            "sig": (
                "L0DCS3St4nt6Sj4b0N0DJNFCUJKIyxBmoQdigi6u3qaYUZAeobre6NQO8rFxS4KyTSYP/6EcY4m3gXlADx4Z+40wgb"
                "MrBOB80glVXc7uCt8evmTUwJ36h1pbIdF+oR+XFxK0CImySdUDYzRBWBKkzHBHEyi86bqAyk684/jhbdVfGBe6OoUi"
                "4NRDNKBNXrO9NLvyENhfdIzJY0cQS67hNHeQp5lGY82dqK2EozyZ4uIsYh5hnucike814AXkFeFUDBauG4DQ9stAv9"
                "/Gis9pQ8+vqK6rSpwzYDN1PQQ7P4NTvAsc2m4g8OtEH1D0icIfaxZRyGHxJqe8QMnAI8o+XVTKpCZwfUaQxemJ98+f"
                "gtyRZNpOnF4Yi5q4FO5JLzvUsUTYnNvUWqsOWIaFJKJxe9JQMmXyLC4fCdke5ghYn0hMH5WtEikncOjzuX/NxlyA8D"
                "7UpfziPETcYeuIHUF4h06QAf6f7g5pjrzjXvzfbimuOfVxl4JdhutQNGrHHPDj"
            ),
        },
    ],
}
KEYS = {
    "71fd223dac0d5383": (
        "cc5289bf6d4f83b08db9686e799395eaf26f1c73bdf697c061ed8879cccaf7379b489cd29f23dec0717829555e"
        "d1586e1b90e4197e6226734ee63a51e61d6efa0d9335613503664b1ed8ddb29692ad6feb18686bc1ff2feef623"
        "bf406c5309dfd96b522412a66754be4798dcfd8c1e86ea8d063eba44cfb22055d34c5b5caa033f74bf5e615443"
        "a1864c10bff57170a5f1dd942bf05e20519b5ab1af989c5e9cb81b5322fb271575cfec19c4930e5bfd4945c4fd"
        "d9cc9bba58b8b931557452d12e8a88759c2481de8c92b5bf34b73f4282a746a01b277093347e254944d6afac89"
        "9ef9f621bfe64d542cf95eaa942098d22f2b327175db567d618b743ad4d2acf133a10ffc60ccdd77ee14a7f57a"
        "0679adca76879acd3144898cff0cb43c44e236fbc086a3d5e8e1c969f8ca0235bc3d4120db187aea1141f33cf8"
        "8e8bb8f8d602d140b8afc0d5c2cf2b211454e6875027f04775082f011ce0fa4a3a7f8b40d0b4d7f733f26157dc"
        "dd7ed26efbd14d0709f9faad41c25da921d553adc3098bbb"
    ),
    "4934ddb702c58435": (
        "a0ab845ba2560f0f0e2b33199c221545e5bac601bd2fde4ca0d52825385a36b37886404217fb0437402270c53a"
        "2a2fd21ad6d47ef8d1922f55268e98a58d0dfae134bfeb4f4aad5e9ae2f8e0ca1658e083e6e77fda09eeebdbd5"
        "16987c260049895dd8e1d514f0fe6dfe20cad8e75e01e6dd6e7cd9dd4d8b64a47807155c889664f289de7ea3f9"
        "008ef530eb8e1af3fec101f757522e256bc315e22931b5f73fab7c63bd96fd5a6fbc7d1d314edf0738a3b2ea3f"
        "1f6b367db3813b402db48c7de2a95587d65ba2778c8aca133c5b8144192d09aff011fda5171809d194813802d4"
        "81ca8f551b8391d466ceb21630e505abe69128d043c9dc07c963762ab6382ee1b1b271f47efc9ddb0daceb8256"
        "ec600e8cf011563cf1f122e93997f76f5925bb38a4b37aed7ad083411d535b4f361e1be46c891dff1c2dbbb473"
        "ff89a4dbbc69ad60ec987a2b3e10e12399a0cdbb85d95edd1106f0675bb92cd2045a94e941418dc304bae13c3a"
        "0b25d82f03563d4c28d3699265e39d5ac76a08f0c88f11df"
    ),
}

OFFER = {
    "checksum": "c5" * 32,
    "manifest": ENVELOPE,
    "required": False,
    "size": 1_638_400,
    "version": "1.3.0",
}


def trust(keys=KEYS, threshold=2):
    with open(FILE, "w") as f:
        json.dump({"keys": keys, "threshold": threshold}, f)


def check(offer=OFFER, running="1.2.0", now=NOW, insecure=False, keys=FILE):
    return verify.verify_manifest(
        dict(offer), "esp32c3", running, "1.2.0", now, 0x1C0000, insecure, keys
    )


def refused(coroutine):
    try:
        asyncio.run(coroutine)
    except manifest.Refused as error:
        return error.code
    raise AssertionError("accepted")


def test_accepts():
    trust()
    try:
        fields = asyncio.run(check())
        assert fields["version"] == "1.3.0"
        assert fields["min_version"] == "1.0.0"
        assert asyncio.run(check(now=None)) == fields
        assert refused(check(running="1.3.0")) == "downgrade"
        trust(threshold=1)
        assert asyncio.run(check()) == fields
        few = dict(KEYS)
        few.pop(ENVELOPE["signatures"][0]["keyid"])
        trust(few, 1)
        assert asyncio.run(check()) == fields
    finally:
        os.remove(FILE)


def test_an_app_without_keys():
    assert refused(check(keys="/app/none.json")) == "signature"
    assert asyncio.run(check(insecure=True, keys="/app/none.json"))["size"] == 1_638_400
    bare = dict(OFFER)
    bare["manifest"] = None
    assert refused(check(bare, keys="/app/none.json")) == "signature"
    assert asyncio.run(check(bare, insecure=True, keys="/app/none.json"))["version"] == "1.3.0"


def test_keys_are_a_file_of_bounded_size():
    trust({str(i): "0" * 768 for i in range(11)}, 1)
    try:
        assert os.stat(FILE)[6] > 8192
        assert refused(check()) == "signature"
    finally:
        os.remove(FILE)
    assert refused(check(keys="/app")) == "signature"  # a folder


# Two signatures are two modular powers of a fifth of a second each on the chip: whatever else the
# beacon does has its turn between their seventeen steps.
def test_other_tasks_run_meanwhile():
    trust()
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both():
        task = asyncio.create_task(other())
        await check()
        task.cancel()

    try:
        asyncio.run(both())
    finally:
        os.remove(FILE)
    assert turns >= 32, turns


# What has to be in memory at once, looked at between all steps. Words are twice the chip's here;
# an update has 24 KB for everything, and all of this is gone before its first byte arrives.
def test_memory():
    trust()
    most = 0

    async def watch():
        nonlocal most
        while True:
            gc.collect()
            most = max(most, gc.mem_alloc())
            await asyncio.sleep(0)

    async def both():
        task = asyncio.create_task(watch())
        await asyncio.sleep(0)
        before = gc.mem_alloc()
        await check()
        task.cancel()
        return before

    try:
        asyncio.run(check())  # whatever is imported or made once
        before = asyncio.run(both())
    finally:
        os.remove(FILE)
    used = most - before
    print("verify: %d bytes live at most" % used)
    assert 0 < used < 12_000, used
    gc.collect()
    before = gc.mem_alloc()
    assert refused(check(keys=FILE)) == "signature"
    gc.collect()
    assert gc.mem_alloc() - before < 512  # nothing stays behind
