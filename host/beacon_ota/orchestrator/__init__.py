"""The orchestrator: holds releases, decides who gets what when, and counts what happened.

server/      processes and sockets
dashboard/   the fleet in a browser
api/         the administrators' side: FastAPI
beacon_api/  the beacons' side: plain ASGI, no framework
mirror/      a distribution point on a site
webhooks/    tells other systems
releases/    images in and out
core/        the fleet's state in memory, and what moves it
db/          SQL, one module per table; functions over a connection
blobs/       images by their SHA-256
http/        protocol, bounds, headers, refusals
rollout/     the decisions: pure functions of values

Which of them may import which: docs/orchestrator.md.
"""
