"""One signed exchange of a simulated beacon with the orchestrator, and the check of its answer."""

from beacon_ota.swarm.http import Connection, DownloadSink, ExchangeError, HttpAnswer
from beacon_ota.swarm.signing import is_authentic, sign_request
from beacon_ota.swarm.world import World

_CALL_S = 45.0  # wall-clock seconds without a byte


async def exchange_signed(
    world: World,
    beacon_id: str,
    key: bytes,
    method: str,
    target: str,
    body: bytes = b"",
    more: str = "",
    sink: DownloadSink | None = None,
) -> tuple[HttpAnswer, str]:
    """Send a signed request; return the answer, not yet checked, and the request's nonce.

    Args:
        key: 32 bytes, as registered.
        more: further header lines, each with its line end.
        sink: for the body of a download.

    Raises:
        ExchangeError: ``connect``, ``stall``, ``truncated``, ``http``; also by chance, with the
            shares of the scenario.
    """
    world.stats.calls += 1
    if world.happens(world.scenario.air.refused):
        raise ExchangeError("connect")
    slow = sink is not None and sink.rate is not None
    connection = await Connection.open(world.server, _CALL_S, slow)
    try:
        # Signed only now: connecting may have taken a while, and the signature holds the time.
        request, nonce = sign_request(
            beacon_id, key, method, target, int(world.clock.now()), body=body, more=more
        )
        answer = await connection.send_request(request, _CALL_S, sink)
    finally:
        connection.close()
    if sink is None and world.happens(world.scenario.air.deaf):
        raise ExchangeError("stall")
    return answer, nonce


def check_signature(
    world: World, key: bytes, answer: HttpAnswer, nonce: str, digest: str | None = None
) -> None:
    """Refuse and count an answer that the orchestrator has not signed (ExchangeError ``http``).

    Args:
        digest: hex SHA-256 of a download; without one, of the answer's body.
    """
    mac = answer.headers.get(b"x-beacon-mac", b"")
    if not is_authentic(key, nonce, answer.status, digest, answer.body, mac):
        world.stats.forged += 1
        raise ExchangeError("http")
