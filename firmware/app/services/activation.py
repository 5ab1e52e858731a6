# Turns Bluetooth on, except on boards where that hangs or resets the chip. Loaded at boot only.

from micropython import const
from wire import adverts

# NVS `ble`: whether activation ever came back on this board.
_UNKNOWN = const(0)
_TRYING = const(1)
_WORKS = const(2)
_AGAIN = const(3)  # not after a power cut either
_POWER_ON = const(1)
_WATCHDOG = const(3)


# Returns (active driver, name to advertise), or None without Bluetooth. If turning it on hangs or
# resets the chip, `ble` stays at "trying", and the next boots leave Bluetooth off until the power
# is cut. Some chips report every reset as a power-on, so after a second failure Bluetooth stays off
# whatever the cause, until Radio.record_good_boot().
def start(store, journal, cause, irq):
    known = store.number("ble")
    if known == _AGAIN or known == _TRYING and cause != _POWER_ON:
        journal.write("ble", "skipped", "activation never came back")
        return None
    if known != _WORKS:
        kept = store.try_put("ble", _AGAIN if known == _TRYING else _TRYING)
        if not kept and cause == _WATCHDOG:
            # Bluetooth may have hung, and NVS did not take the note of it.
            journal.write("ble", "skipped", "nvs takes nothing")
            return None
    try:
        import bluetooth

        ble = bluetooth.BLE()
        ble.active(True)
        ble.irq(irq)
        name = adverts.device_name(ble.config("mac")[1])
        ble.config(gap_name=name)
    except Exception as error:
        if known == _WORKS or cause == _POWER_ON:
            journal.write("ble", "failed", repr(error))
        if known != _WORKS:
            store.try_put("ble", _UNKNOWN)
        return None
    if known != _WORKS:
        store.try_put("ble", _WORKS)
    return ble, name
