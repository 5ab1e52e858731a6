"""The record of a boot."""

from beacon_ota.virtual import boot_record, peripherals
from beacon_ota.virtual.boot_record import BootRecord


def test_a_record_for_json_has_no_console():
    boot = BootRecord(3, peripherals.WATCHDOG, 1.5, 20, slot="ota_0", console="hello")
    shown = boot.as_dict()
    assert "console" not in shown
    assert (shown["number"], shown["slot"], shown["ended"]) == (3, "ota_0", None)


def test_every_end_leads_to_a_reset_cause_or_is_final():
    ends = {"reset", "pin", "panic", "watchdog", "power", "deepsleep", "crash", "unbootable"}
    assert {*boot_record.CAUSES, *boot_record.FINAL} == ends
    assert not set(boot_record.CAUSES) & set(boot_record.FINAL)
