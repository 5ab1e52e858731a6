"""A reader at the door, through bleak: prints the verdict on the right secret and on a wrong one.

Arguments: the beacon's address, the id of the credential, its secret in hex.
"""

import asyncio
import hmac
import json
import sys
import time

from bleak import BleakClient, BleakScanner

from beacon_ota.wire import access, access_reader


async def visit(address, ident, secret):
    device = await BleakScanner.find_device_by_address(address, timeout=20)
    assert device is not None, "no door"
    heard = asyncio.Queue()
    verdicts = []
    async with BleakClient(device, timeout=30) as client:
        await client.start_notify(access.STATUS, lambda _, data: heard.put_nowait(bytes(data)))

        async def say(message):
            await client.write_gatt_char(access.CONTROL, message, response=True)
            return access.parse_message(await asyncio.wait_for(heard.get(), 30))

        for known in (secret, bytes(16)):
            begun = time.monotonic()
            _, nonce = await say(access_reader.build_request(ident))
            proof = access_reader.build_proof(hmac.digest(known, bytes(nonce), "sha256"))
            kind, _ = await say(proof)
            verdicts.append((kind, round(time.monotonic() - begun, 3)))
    return verdicts


found = asyncio.run(visit(sys.argv[1], sys.argv[2].encode(), bytes.fromhex(sys.argv[3])))
print(json.dumps(found))
