"""The orchestrator: stores releases, decides which beacon gets which when, counts the outcomes.

server/      processes and sockets
dashboard/   the fleet in a browser
api/         the administrators' API: FastAPI
beacon_api/  the beacons' API: plain ASGI, no framework
mirror/      an orchestrator on a site, which follows its primary
backup/      backups of the data folder, and restoring them
webhooks/    deliveries to other systems
releases/    uploads and downloads of images
core/        the fleet's state in memory, and the engine that moves it
db/          SQL, one module per table; functions over a connection
blobs/       images by their SHA-256
http/        protocol, bounds, headers, refusals
rollout/     the decisions: pure functions of values

docs/orchestrator.md says which of them may import which.
"""
