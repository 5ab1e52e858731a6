# Creates the services that need Bluetooth, once in a boot, when it is known whether Bluetooth
# works.


# Returns (access control, provisioning, button), each None when the beacon does not have it.
def start(beacon):
    if not beacon.radio.is_up():
        return None, None, None
    from blufi.server import Server
    from services.access import Access

    access = Access(beacon.store, beacon.radio)
    return access, Server(beacon), _button(beacon)


def _button(beacon):
    pin = beacon.store.policy("button_pin")
    if pin < 0:
        return None
    from services.button import Button

    try:
        return Button(beacon, pin)
    except ValueError as error:
        beacon.journal.write("button", "no_pin", "%d: %s" % (pin, error))
        return None
