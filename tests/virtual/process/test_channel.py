"""What travels between interpreter and supervisor, and names on the wire: any bytes may come."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.virtual.net import dns
from beacon_ota.virtual.net.network import Network
from beacon_ota.virtual.process.channel import pack_value, unpack_value

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.text(max_size=40),
        st.binary(max_size=40),
    ),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=20,
)


@given(values)
def test_values_come_back(value):
    assert unpack_value(pack_value(value)) == value


@given(st.binary(max_size=60))
def test_anything_else_is_a_named_error(raw):
    try:
        value = unpack_value(raw)
    except ValueError:
        return
    assert unpack_value(pack_value(value)) == value


@pytest.mark.parametrize("raw", [b"", b"(\x02N", b"B\xff\xff\xff\xff", b"NN", b"(" * 40])
def test_malformed(raw):
    with pytest.raises(ValueError):
        unpack_value(raw)


def test_what_does_not_travel():
    with pytest.raises(TypeError):
        pack_value(1.5)


def site() -> Network:
    network = Network(services={"_beacon-ota._tcp": ("orchestrator.local", 8080)})
    network.set_host("Orchestrator.local", "127.0.0.1")
    return network


def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", 9, 0x100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, kind, 1)


@given(st.binary(max_size=80))
def test_no_question_breaks_the_name_server(raw):
    for silent in (False, True):
        reply = dns.answer_query(raw, site(), silent=silent)
        assert reply is None or reply[:2] == raw[:2]


def test_answers():
    network = site()
    reply = dns.answer_query(query("ORCHESTRATOR.local", dns.A), network, silent=True)
    assert reply is not None
    assert reply[-4:] == bytes([10, 77, 2, 1])
    assert dns.answer_query(query("nobody.local", dns.A), network, silent=True) is None
    reply = dns.answer_query(query("nobody.local", dns.A), network, silent=False)
    assert reply is not None
    assert reply[3] & 15 == 3
    reply = dns.answer_query(query("_beacon-ota._tcp.local", dns.PTR), network, silent=True)
    assert reply is not None
    assert reply[6:8] == b"\0\3"
    assert struct.pack(">HHH", 0, 0, 8080) in reply


def test_names_and_numbers_lead_to_the_same_place():
    network = site()
    number = network.lookup_name("orchestrator.local")
    assert number == "10.77.2.1"
    assert network.real_address(number, 8080) == ("127.0.0.1", 8080)
    network.set_host("orchestrator.local", "127.0.0.1", 40123)
    assert network.real_address(number, 8080) == ("127.0.0.1", 40123)
    assert network.real_address("192.0.2.7", 80) == ("192.0.2.7", 80)
