# Which services a beacon has: decided once in a boot, when Bluetooth is there or is not.


# (access control, provisioning, the button), None for what there is not.
def start_services(beacon):
    if not beacon.radio.is_on():
        return None, None, None
    from blufi.server import Server
    from services.access import Access

    access = Access(beacon.store, beacon.radio)
    return access, Server(beacon), _make_button(beacon)


def _make_button(beacon):
    pin = beacon.store.policy("button_pin")
    if pin < 0:
        return None
    from services.button import Button

    try:
        return Button(beacon, pin)
    except ValueError as error:
        beacon.journal.write("button", "no_pin", "%d: %s" % (pin, error))
        return None
