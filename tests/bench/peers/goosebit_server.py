"""Runs in the peer's environment: ``python goosebit_server.py PORT FOLDER IMAGE DEVICES``.

A new database, one software, one rollout on the default feed, registered devices of an older
version, a user for the listing; then the server on loopback.
"""

import asyncio
import hashlib
import logging
import os
import sys
from pathlib import Path

port, folder, image, devices = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
content = image.read_bytes()
os.environ["GOOSEBIT_DB_URI"] = f"sqlite://{folder / 'db.sqlite3'}"
os.environ["GOOSEBIT_ARTIFACTS_DIR"] = str(folder / "artifacts")
os.environ["GOOSEBIT_TENANT"] = "DEFAULT"
os.chdir(folder)

import uvicorn  # noqa: E402
from goosebit import app  # type: ignore # noqa: E402
from goosebit.db.config import TORTOISE_CONF  # type: ignore # noqa: E402
from goosebit.db.models import (  # type: ignore # noqa: E402
    Device,
    Hardware,
    Rollout,
    Software,
    UpdateStateEnum,
)
from goosebit.users import create_user  # type: ignore # noqa: E402
from tortoise import Tortoise  # type: ignore # noqa: E402


async def seed() -> None:
    await Tortoise.init(config=TORTOISE_CONF)
    await Tortoise.generate_schemas()
    hardware = await Hardware.create(model="default", revision="default")
    software = await Software.create(
        uri=image.as_uri(),
        version="1.1.0",
        size=len(content),
        hash=hashlib.sha1(content).hexdigest(),
    )
    await software.compatibility.add(hardware)
    await Rollout.create(name="bench", feed="default", software=software)
    await Device.bulk_create(
        [
            Device(
                id=f"b{number:05}",
                hardware=hardware,
                sw_version="1.0.0",
                last_state=UpdateStateEnum.REGISTERED,
            )
            for number in range(int(devices))
        ]
    )
    await create_user("bench", "bench", ["*"])
    await Tortoise.close_connections()


asyncio.run(seed())
logging.disable(logging.INFO)
uvicorn.run(
    app,
    host="127.0.0.1",
    port=port,
    loop="uvloop",
    http="httptools",
    access_log=False,
    log_level="warning",
)
