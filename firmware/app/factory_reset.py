# Erases what was provisioned. The beacon's identity (id, PIN, policy) and its history (floor,
# journal, denied images) stay.

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


# Erases all or nothing, even when the power fails. A full NVS has no room for the redo log: then
# the values are erased one by one, the key first, and after a power cut the erasure has to be asked
# for again.
def erase(store):
    try:
        store.put_all(dict.fromkeys(GIVEN))
    except OSError:
        for key in ("beacon_key",) + GIVEN:
            store.put(key, None)
