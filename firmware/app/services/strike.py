# Drives the GPIO of the door strike, if the policy names one.

from machine import Pin, Timer


def open(store):
    number = store.policy("strike_pin")
    if number < 0:
        return
    pin = Pin(number, Pin.OUT, value=1)
    Timer(
        1,
        mode=Timer.ONE_SHOT,
        period=store.policy("strike_ms"),
        callback=lambda _: pin.value(0),
    )
