# Back to how it left the factory. What whoever provisions has given is forgotten; what the beacon
# is (id, PIN, policy) and what it has been through (floor, journal, known-bad releases) stay.

from micropython import const

GIVEN = const(
    (
        "wifi_ssid",
        "wifi_pass",
        "wifi2_ssid",
        "wifi2_pass",
        "orch_url",
        "beacon_key",
        "fleet_key",
        "site",
        "window",
        "utc_off",
        "channel",
        "ibeacon",
        "creds",
        "attempt",
        "confirmed",
    )
)


# All of it or nothing, whenever the power fails. A full NVS has no room for the intention: then one
# after the other, the key first, and who was cut off by the power has to ask again.
def erase_provisioned(store):
    try:
        store.put_all(dict.fromkeys(GIVEN))
    except OSError:
        for key in ("beacon_key",) + GIVEN:
            store.put(key, None)
