"""The watchdog is fed by the loop that would notice a hang; tasks that die again and again."""

import pytest

from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.beacon_rig import set_up_rig
from beacon_ota.virtual.radio.vhci import RadiolessBackend

# A task that is added to the others', and the line it is added at.
AT = '        start("radio", self.radio.run)\n'
HANGS = """
async def hang():
    await asyncio.sleep(3)
    while True:
        pass


def run():
"""
DIES = """
async def die():
    await asyncio.sleep(1)
    raise ValueError("broken task")


def run():
"""


def release(task: str, name: str) -> bytes:
    main = builds.read_source("app", "main.py")
    assert main.count(AT) == main.count("def run():\n") == 1
    main = main.replace(AT, f'{AT}        start("{name}", {name})\n').replace("def run():\n", task)
    return builds.build_release("1.0.0", {"main.py": main})


def up(b) -> bool:
    radio = b.beacon.bluetooth
    return isinstance(radio, RadiolessBackend) and radio.advertising is not None


def said(b, stage: str, code: str) -> list:
    return [e for e in b.orchestrator.journal(builds.BEACON) if e[2:4] == [stage, code]]


@pytest.mark.timeout(300)
def test_a_loop_that_hangs_is_noticed(tmp_path):
    """All that feeds the watchdog is that loop: no timer and no interrupt goes on feeding it."""
    content = builds.build_flash(release(HANGS, "hang"))
    with set_up_rig(content, tmp_path, scale=20) as b:
        b.orchestrator.register_beacon(builds.BEACON, builds.KEY, builds.DEVICE)
        b.beacon.power_on()
        assert b.wait_for(lambda: len(b.beacon.boots) > 1 and up(b), 60, "a reset")
        assert [boot.ended for boot in b.beacon.boots][0] == "watchdog"


@pytest.mark.timeout(300)
def test_three_deaths_in_a_minute_reset_the_chip(tmp_path):
    content = builds.build_flash(release(DIES, "die"))
    with set_up_rig(content, tmp_path, scale=20) as b:
        b.orchestrator.register_beacon(builds.BEACON, builds.KEY, builds.DEVICE)
        b.beacon.power_on()
        assert b.wait_for(lambda: len(b.beacon.boots) > 1 and up(b), 60, "a reset")
        assert b.beacon.boots[0].ended == "reset"
        assert b.beacon.boots[0].console.count("broken task") >= 3
        assert b.wait_for(
            lambda: said(b, "task", "die") and said(b, "boot", "crash"), 60, "journal"
        )
        assert "died 3 times" in said(b, "boot", "crash")[0][4]
