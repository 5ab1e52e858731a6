"""Runs in the peer's environment: ``python openmv_server.py PORT FOLDER IMAGE``.

Its own application factory with one release and one rollout at 100 %, rate limit off, every board
taken for registered (its registry is a service on the Internet); then the server on loopback.
"""

import hashlib
import sys
from pathlib import Path

import uvicorn
from openmv_ota.server.app import create_app  # type: ignore
from openmv_ota.server.metastore import build_metastore  # type: ignore
from openmv_ota.server.settings import ServerSettings  # type: ignore
from openmv_ota.server.storage import build_storage  # type: ignore
from openmv_ota.server.verify import Registration  # type: ignore

port, folder, image = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])


class Everybody:
    def verify(self, board: str, device_id: str) -> Registration:
        return Registration(True)


settings = ServerSettings(
    base_url=f"http://127.0.0.1:{port}",
    database_url=f"sqlite:///{folder / 'ota.db'}",
    storage_location=str(folder / "storage"),
    swd_ids_verify_url="http://127.0.0.1:9/",
    capability_secret="for the bench",
    checkin_rate_per_min=0,
    checkin_rate_per_prefix_per_min=0,
)
metastore, storage = build_metastore(settings), build_storage(settings)
metastore.migrate()
data = image.read_bytes()
storage.put("bench/manifest.bin", b"m" * 600, "application/octet-stream")
storage.put("bench/image.bin", data, "application/octet-stream")
metastore.add_release(
    release_id="bench",
    product_id=1,
    product="bench",
    version="1.1.0",
    payload_version=2,
    min_platform_version=0,
    image_sha256=hashlib.sha256(data).hexdigest(),
    image_size=len(data),
    representations=[{"format": "full", "url": "image.bin", "size": len(data)}],
    manifest_key="bench/manifest.bin",
    image_key="bench/image.bin",
)
metastore.add_rollout(
    rollout_id="bench",
    release_id="bench",
    product_id=1,
    cohort="__default__",
    percent=100,
    failure_threshold=0.5,
)
uvicorn.run(
    create_app(settings, metastore=metastore, storage=storage, verifier=Everybody()),
    host="127.0.0.1",
    port=port,
    access_log=False,
    log_level="warning",
)
