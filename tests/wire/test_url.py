from beacon_ota.wire import url

GOOD = {
    "http://orchestrator.local:8080": (False, "orchestrator.local", 8080),
    "http://orchestrator.local:8080/": (False, "orchestrator.local", 8080),
    "HTTP://Orch.Example": (False, "orch.example", 80),
    "https://orch.example.": (True, "orch.example", 443),
    "Https://orch-1.example:8443": (True, "orch-1.example", 8443),
    "http://my_host": (False, "my_host", 80),
    "http://10.0.0.30:65535": (False, "10.0.0.30", 65535),
    "http://0.0.0.0:1": (False, "0.0.0.0", 1),
    "http://1-2.3a": (False, "1-2.3a", 80),
}

BAD = (
    "",
    "orch:8080",
    "ftp://orch",
    "http:/orch",
    "http://",
    "http:///",
    "http://:8080",
    " http://orch:8080",
    "http://orch:8080 ",
    "http://orch:8080#x",
    "http://orch:8080?",
    "http://orch:8080/path",
    "http://orch:8080//",
    "http://user@orch",
    "http://user:word@orch",
    "http://or ch:8080",
    "http://orch:",
    "http://orch:0",
    "http://orch:65536",
    "http://orch:-1",
    "http://orch:port",
    "http://orch:" + "9" * 100,
    "http://orch:+80",
    "http://orch:8 0",
    "http://orch:000080",
    "http://orch.example.:x",
    "http://orch..local:8080",
    "http://.orch",
    "http://-orch",
    "http://orch-.example",
    "http://[fd00::12]:8080",
    "http://fd00::12",
    "http://10.0.0.300:8080",
    "http://010.0.0.5:8080",
    "http://10.0.5",
    "http://1.2.3.4.5",
    "http://10",
    "http://b\u00fcro.local",
    "http://" + "a" * 64 + ".local",
    "http://" + "a." * 60 + "local",
    "http://orch\x00",
    "http://orch\n",
)


def test_what_a_beacon_can_use():
    for text, found in GOOD.items():
        assert url.parse(text) == found, text


def test_what_it_cannot():
    for text in BAD:
        try:
            url.parse(text)
        except ValueError as error:
            assert str(error), text
        else:
            raise AssertionError(text)


def test_addresses():
    for host in ("0.0.0.0", "10.0.0.30", "255.255.255.255"):
        assert url.is_ipv4(host), host
    none = (
        "",
        "10.0.0",
        "1.2.3.4.5",
        "256.1.1.1",
        "10.0.0.01",
        "1..2.3",
        "a.b.c.d",
        "0x1.2.3.4",
        "1.2.3.-4",
    )
    for host in none:
        assert not url.is_ipv4(host), host
