# Turns Bluetooth on, and knows when it had better not: loaded for that moment of a boot.

from micropython import const
from wire import adverts

# NVS `ble`: has activation ever come back on this board?
_UNKNOWN = const(0)
_TRYING = const(1)
_WORKS = const(2)
_AGAIN = const(3)  # nor after the power was cut
_POWER_ON = const(1)
_WATCHDOG = const(3)


# The active driver and the name it goes by; None without. On a board (or an emulated chip) whose
# Bluetooth hangs or resets the chip, `ble` stays at "trying": that boot goes without, until
# somebody has cut the power. Some chips call every reset a power-on: after a second time it goes
# without whatever the cause, until Radio.healthy() says that this boot was a good one.
def activate(store, journal, cause, irq):
    known = store.number("ble")
    if known == _AGAIN or known == _TRYING and cause != _POWER_ON:
        journal.write("ble", "skipped", "activation never came back")
        return None
    if known != _WORKS:
        kept = store.try_put("ble", _AGAIN if known == _TRYING else _TRYING)
        if not kept and cause == _WATCHDOG:
            # Perhaps it was Bluetooth that hung, and NVS did not take a word of it.
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
