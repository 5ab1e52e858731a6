"""Announces the orchestrator over mDNS: ``_beacon-ota._tcp`` and ``orchestrator.local``."""

import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beacon_ota.orchestrator.server.listen import ListenOptions

SERVICE_TYPE = "_beacon-ota._tcp.local."
SERVICE_HOST = "orchestrator.local."

log = logging.getLogger("beacon_ota.orchestrator")


@contextlib.asynccontextmanager
async def mdns_announcement(listen: "ListenOptions", sock: socket.socket) -> AsyncIterator[None]:
    """Announce the service for the duration of the block, if the options ask for it.

    A network without multicast does not stop the server: the failure is logged.
    """
    if not listen.announce:
        yield
        return
    from zeroconf import IPVersion
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

    port = sock.getsockname()[1]
    scheme = "https" if listen.tls_cert else "http"
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"Beacon OTA {socket.gethostname()} {port}.{SERVICE_TYPE}",
        addresses=[socket.inet_aton(address) for address in reachable_addresses(listen.host)],
        port=port,
        properties={"path": "/firmwares/latest/", "scheme": scheme},
        server=SERVICE_HOST,
    )
    try:
        zeroconf = AsyncZeroconf(ip_version=IPVersion.V4Only)
        await zeroconf.async_register_service(info, allow_name_change=True)
    except Exception as error:  # of many kinds; none is a reason not to serve
        log.warning("not announced over mDNS: %s", error)
        yield
        return
    try:
        yield
    finally:
        await zeroconf.async_unregister_service(info)
        await zeroconf.async_close()


def reachable_addresses(host: str) -> list[str]:
    """Return the IPv4 addresses at which a listener on ``host`` is reached."""
    if host not in ("0.0.0.0", "::", ""):
        return [host]
    import ifaddr

    found = [
        str(ip.ip)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if ip.is_IPv4 and not str(ip.ip).startswith("127.")
    ]
    return found or ["127.0.0.1"]
