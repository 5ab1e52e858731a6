"""Where webhooks are sent to: what is global or private, and nothing else."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beacon_ota.orchestrator.webhooks.addresses import is_allowed_address

PRIVATE = [ip_network(x) for x in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1")]

# IANA's registries of special-purpose addresses without the private ones and loopback, and what
# IANA has set aside as a whole (multicast, reserved, what is no global unicast).
SPECIAL = [
    ip_network(x)
    for x in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "::/96",
        "::ffff:0:0:0/96",
        "64:ff9b:1::/48",
        "100::/64",
        "100:0:0:1::/64",
        "2001::/32",
        "2001:2::/48",
        "2001:3::/32",
        "2001:4:112::/48",
        "2001:10::/28",
        "2001:20::/28",
        "2001:30::/28",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
        "4000::/2",
        "5f00::/16",
        "8000::/2",
        "e000::/4",
        "f000::/6",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
]
METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.23",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fe80::a9fe:a9fe",
]


def inside(network: IPv4Network | IPv6Network) -> st.SearchStrategy[str]:
    """Draw an address of a network, its edges often."""
    first, last = int(network[0]), int(network[-1])
    kind = IPv4Address if network.version == 4 else IPv6Address
    numbers = st.sampled_from((first, last)) | st.integers(first, last)
    return numbers.map(lambda number: str(kind(number)))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("address", METADATA)
def test_metadata_of_clouds(address, local):
    assert not is_allowed_address(address, local=local)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "168.63.129.15",
        "168.63.129.17",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001:80b::200e",
        "2001:200::1",
        "2003::1",
        "2001:db7:ffff::1",
        "2001:db9::1",
        "3ffe:ffff::1",
        "fd12:3456:789a::1",
        "fd00:ec1::254",
        "fd20:ce::253",
        "10.1.2.3",
        "192.168.0.7",
        "::ffff:10.1.2.3",
        "64:ff9b::8.8.8.8",
    ],
)
def test_receivers(address):
    assert is_allowed_address(address, local=False) and is_allowed_address(address, local=True)


@given(address=st.sampled_from(SPECIAL).flatmap(inside), local=st.booleans())
def test_special_purposes(address, local):
    loopback = any(
        IPv6Address(address) in network if ":" in address else IPv4Address(address) in network
        for network in LOOPBACK
    )
    assert not is_allowed_address(address, local=local) or (loopback and local)


@given(address=st.sampled_from(PRIVATE).flatmap(inside))
def test_private_networks(address):
    assume(address not in METADATA and not address.startswith("fd00:ec2:"))
    assert is_allowed_address(address, local=False)


@given(address=st.sampled_from(LOOPBACK).flatmap(inside), local=st.booleans())
def test_this_machine(address, local):
    assert is_allowed_address(address, local=local) is local


@given(address=st.ip_addresses(v=4), local=st.booleans())
def test_ipv4_in_ipv6(address, local):
    """Mapped addresses are what they map; translated ones have to be global besides."""
    itself = is_allowed_address(str(address), local=local)
    assert is_allowed_address(f"::ffff:{address}", local=local) is itself
    private = any(address in network for network in (*PRIVATE[:3], LOOPBACK[0]))
    translated = str(IPv6Address(int(IPv6Address("64:ff9b::")) | int(address)))
    assert is_allowed_address(translated, local=local) is (itself and not private)
    for wrapped in (
        IPv6Address(int(IPv6Address("2002::")) | int(address) << 80),
        IPv6Address(int(IPv6Address("2001::")) | 0xFFFFFFFF ^ int(address)),
        IPv6Address(int(IPv6Address("2001::")) | int(address) << 64),
        IPv6Address(int(IPv6Address("64:ff9b:1::")) | int(address)),
        IPv6Address(int(IPv6Address("::ffff:0:0:0")) | int(address)),
    ):
        assert not is_allowed_address(str(wrapped), local=local)


@given(address=st.ip_addresses(v=6), local=st.booleans())
def test_a_scope_changes_nothing(address, local):
    assert is_allowed_address(f"{address}%eth0", local=local) is is_allowed_address(
        str(address), local=local
    )
