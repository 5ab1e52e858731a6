"""Decides to which IP addresses webhooks are sent: global and private ones, and no others.

Receivers are on the internet or in private networks. Services on the link, in a cloud's internal
network or on this machine trust every caller that reaches them, so they are excluded. The special
purposes are those of IANA's registries iana-ipv4-special-registry and iana-ipv6-special-registry
as of 2025, written out because ``ipaddress.is_global`` changes with Python's version.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_PRIVATE4 = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_PRIVATE6 = IPv6Network("fc00::/7")
_GLOBAL6 = IPv6Network("2000::/3")  # IANA assigns global unicast addresses from here

_MAPPED = IPv6Network("::ffff:0:0/96")
_TRANSLATED = IPv6Network("64:ff9b::/96")  # RFC 6052: IPv4 behind NAT64

_SPECIAL4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "100.64.0.0/10",  # shared by a provider's customers; Alibaba's metadata
            "169.254.0.0/16",  # the link; most clouds' metadata
            "192.0.0.0/24",  # protocol assignments; Oracle's metadata
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
_SPECIAL6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, drones
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)

# Addresses of cloud metadata services that no special purpose covers.
_METADATA4 = (IPv4Address("168.63.129.16"),)  # Azure
_METADATA6 = tuple(
    map(
        IPv6Network,
        (
            "fd00:ec2::/32",  # AWS
            "fd20:ce::254/128",  # Google
            "fd00:c1::a9fe:a9fe/128",  # Oracle
            "fd00:42::42/128",  # Scaleway
        ),
    )
)


def is_allowed_address(address: str, *, local: bool) -> bool:
    """Tell whether webhooks are sent to an IP address.

    Args:
        address: IPv4 or IPv6, with or without a scope.
        local: loopback addresses are allowed.

    Raises:
        ValueError: the text is no IP address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return _is_allowed_ipv4(ip, local)
    if ip in _MAPPED:
        return _is_allowed_ipv4(_embedded_ipv4(ip), local)
    if ip in _TRANSLATED:
        return _is_global_ipv4(_embedded_ipv4(ip))
    if ip.is_loopback:
        return local
    if any(ip in network for network in _METADATA6):
        return False
    if ip in _PRIVATE6:
        return True
    return ip in _GLOBAL6 and not any(ip in network for network in _SPECIAL6)


def _is_allowed_ipv4(ip: IPv4Address, local: bool) -> bool:
    if ip.is_loopback:
        return local
    return _is_global_ipv4(ip) or any(ip in network for network in _PRIVATE4)


def _is_global_ipv4(ip: IPv4Address) -> bool:
    if ip.is_loopback or ip in _METADATA4:
        return False
    return not any(ip in network for network in _PRIVATE4 + _SPECIAL4)


def _embedded_ipv4(ip: IPv6Address) -> IPv4Address:
    return IPv4Address(int(ip) & 0xFFFF_FFFF)
