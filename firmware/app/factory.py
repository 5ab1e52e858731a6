# Back to how it left the factory. What whoever provisions has given is forgotten; what the beacon
# is (id, PIN, policy) and what it has been through (floor, journal, known-bad releases) stay.

_GIVEN = (
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


# All of it or nothing, whenever the power fails.
def forget(store):
    store.put_all(dict.fromkeys(_GIVEN))
