"""The record of one boot of a virtual beacon: how it began, what it printed, how it ended."""

from dataclasses import dataclass

from beacon_ota.virtual import peripherals

# End of a boot -> reset cause of the next boot.
CAUSES = {
    "reset": peripherals.HARD,
    "panic": peripherals.HARD,
    "crash": peripherals.HARD,
    "watchdog": peripherals.WATCHDOG,
    "deepsleep": peripherals.DEEP_SLEEP,
    "pin": peripherals.POWER_ON,
}
FINAL = ("power", "unbootable")


@dataclass
class BootRecord:
    """One run between two resets.

    Attributes:
        number: from 1.
        cause: value of ``machine.reset_cause()`` at the start of the boot.
        began: virtual seconds since the beacon was made.
        operations: flash operations before the boot began.
        slot: name of the partition that booted, None when none did.
        log: lines of the bootloader.
        phase: ``boot`` (before boot.py), ``boot.py``, ``main.py``, ``repl``, ``corrupt``.
        ended: None while it runs, then ``reset``, ``pin`` (EN), ``panic``, ``watchdog``, ``power``,
            ``deepsleep``, ``crash`` (the interpreter itself ended), ``unbootable``.
        detail: of the end, as text.
        soft_resets: restarts of Python within this boot.
        duration: virtual seconds.
        heap: bytes of heap in use, with ``heap_watch``, without the share of the stubs.
        heap_peak: maximum of ``heap`` since the field was last set to 0.
        heap_low: minimum of ``heap`` since the field was last set to 0.
        console: output of the boot.
    """

    number: int
    cause: int
    began: float
    operations: int
    slot: str | None = None
    log: tuple[str, ...] = ()
    phase: str = "boot"
    ended: str | None = None
    detail: str = ""
    soft_resets: int = 0
    duration: float = 0.0
    heap: int = 0
    heap_peak: int = 0
    heap_low: int = 0
    console: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json``, without the console."""
        return {key: value for key, value in vars(self).items() if key != "console"}
