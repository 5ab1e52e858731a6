"""Timers, pins, scheduled functions, time: what happens while something else does."""

import resource
import socket
import time
from contextlib import ExitStack

import pytest

from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import Network
from tests.virtual import rig


def test_timer_periodic_and_one_shot():
    lines = rig.printed(
        "import machine, time\n"
        "ticks = []\n"
        "t = machine.Timer(0)\n"
        "t.init(period=50, callback=lambda x: ticks.append(x is t))\n"
        "once = machine.Timer(-1, mode=machine.Timer.ONE_SHOT, period=60,\n"
        "    callback=lambda x: print('once'))\n"
        "time.sleep_ms(330)\n"
        "t.deinit()\n"
        "n = len(ticks)\n"
        "time.sleep_ms(150)\n"
        "print(n >= 4, all(ticks), len(ticks) == n)"
    )
    assert lines == ["once", "True True True"]


def test_timer_interrupts_a_busy_loop():
    lines = rig.printed(
        "import machine, time\n"
        "hit = []\n"
        "machine.Timer(-1, mode=0, period=30, callback=lambda t: hit.append(1))\n"
        "end = time.ticks_add(time.ticks_ms(), 3000)\n"
        "while not hit and time.ticks_diff(end, time.ticks_ms()) > 0:\n    pass\n"
        "print(len(hit))"
    )
    assert lines == ["1"]


def test_timer_interrupts_a_blocking_read():
    """A guard must work while the main code hangs in a socket."""
    main = (
        "import machine, network, socket, time\n"
        "wlan = network.WLAN(0)\nwlan.active(True)\nwlan.connect('office')\n"
        "while not wlan.isconnected():\n    time.sleep_ms(5)\n"
        "s = socket.socket()\n"
        "s.connect(socket.getaddrinfo('silent.local', 80)[0][-1])\n"
        "machine.Timer(-1, mode=0, period=100, callback=lambda t: machine.reset())\n"
        "s.read(1)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        network = Network(join_time=0.01)
        network.add_access_point("office")
        network.set_host("silent.local", "127.0.0.1", silent.getsockname()[1])
        with rig.running(main, network=network) as beacon:
            beacon.wait_for(lambda: len(beacon.boots) > 1, rig.WAIT)
            assert beacon.boots[0].ended == "reset"
            assert beacon.boots[0].phase == "main.py"


def test_timer_runs_in_the_repl():
    with rig.running(
        "import machine\nmachine.Timer(-1, mode=0, period=200, callback=lambda t: machine.reset())"
    ) as beacon:
        beacon.wait_for(lambda: len(beacon.boots) > 1, rig.WAIT)
        assert beacon.boots[0].phase == "repl"
        assert beacon.boots[0].ended == "reset"


def test_timer_refuses():
    lines = rig.printed(
        "import machine\n"
        "for f in (lambda: machine.Timer(7), lambda: machine.Timer(-1, period=0),\n"
        "          lambda: machine.Timer(-1, period=5, hard=True)):\n"
        "    try:\n        f()\n    except ValueError as e:\n        print(e)"
    )
    assert len(lines) == 3


BUTTON = """
import machine, time, sys
b = machine.Pin(9, machine.Pin.IN, machine.Pin.PULL_UP)
print("level", b.value())
b.irq(lambda p: print("edge", p.value()), trigger=machine.Pin.IRQ_FALLING)
print("ready")
"""


IDLE = pytest.mark.parametrize(
    "idle",
    [
        "time.sleep(6000)",
        "while True: pass",
        "import asyncio\nasync def nap():\n    await asyncio.sleep(6000)\nasyncio.run(nap())",
        "import select\nselect.poll().poll(6000000)",
    ],
)


def edges(idle: str) -> list[float]:
    """Press a button twenty times; return after how many seconds each was noticed."""
    times = []
    with rig.running(BUTTON + idle) as beacon:
        beacon.wait_for(lambda: "ready" in beacon.console, rig.WAIT)
        for count in range(1, 21):
            start = time.monotonic()
            beacon.press()
            beacon.wait_for(lambda n=count: beacon.console.count("edge 0") == n, rig.WAIT)
            times.append(time.monotonic() - start)
            beacon.release()
        assert "level 1" in beacon.console
        assert "edge 1" not in beacon.console  # only the falling edge was asked for
    return times


@IDLE
def test_pin_interrupt_arrives_whatever_the_beacon_does(idle):
    assert len(edges(idle)) == 20


@pytest.mark.slow
@IDLE
def test_pin_interrupt_arrives_soon(idle):
    assert sorted(edges(idle))[10] < 0.1  # 1 ms on an idle machine


def test_thread_safe_flag_wakes_asyncio_at_once():
    main = (
        "import asyncio, machine, time\n"
        "flag = asyncio.ThreadSafeFlag()\n"
        "p = machine.Pin(9)\n"
        "p.irq(lambda p: flag.set(), trigger=p.IRQ_FALLING)\n"
        "async def main():\n"
        "    print('ready')\n"
        "    for i in range(20):\n"
        "        await flag.wait()\n"
        "        print('woken', i)\n"
        "asyncio.run(main())\n"
    )
    with rig.running(main) as beacon:
        beacon.wait_for(lambda: "ready" in beacon.console, rig.WAIT)
        for count in range(20):
            beacon.press()
            beacon.release()
            beacon.wait_for(lambda n=count: f"woken {n}\n" in beacon.console, rig.WAIT)


def test_scheduled_functions_wake_a_poll():
    main = (
        "import asyncio, micropython, machine, time\n"
        "flag = asyncio.ThreadSafeFlag()\n"
        "def later(x):\n    flag.set()\n"
        "async def main():\n"
        "    for i in range(50):\n"
        "        micropython.schedule(later, None)\n"
        "        await flag.wait()\n"
        "    print('done')\n"
        "asyncio.run(main())\n"
    )
    assert rig.printed(main) == ["done"]


def test_schedule_queue_is_eight_deep():
    lines = rig.printed(
        "import machine, micropython\n"
        "state = machine.disable_irq()\n"
        "n = 0\n"
        "try:\n"
        "    while True:\n"
        "        micropython.schedule(print, n)\n"
        "        n += 1\n"
        "except RuntimeError as e:\n    print(n, e)\n"
        "machine.enable_irq(state)\n"
        "print('after')"
    )
    assert lines == ["8 schedule queue full", *map(str, range(8)), "after"]


def test_a_handler_may_fail_and_the_next_event_comes():
    main = (
        "import machine, time\n"
        "p = machine.Pin(9)\n"
        "def handler(p):\n    print('edge')\n    raise ValueError('in the handler')\n"
        "p.irq(handler, trigger=p.IRQ_FALLING)\n"
        "print('ready')\n"
        "time.sleep(60)\n"
    )
    with rig.running(main) as beacon:
        beacon.wait_for(lambda: "ready" in beacon.console, rig.WAIT)
        for count in (1, 2):
            beacon.press()
            beacon.release()
            beacon.wait_for(lambda n=count: beacon.console.count("in the handler") == n, rig.WAIT)


def test_events_do_not_disturb_calls():
    """Handlers that use flash and NVS while the main code does: every value stays right."""
    main = (
        "import machine, esp32, time\n"
        "n = esp32.NVS('t')\n"
        "part = esp32.Partition('vfs')\n"
        "hits = 0\n"
        "def tick(t):\n"
        "    global hits\n"
        "    hits += 1\n"
        "    n.set_i32('tick', hits)\n"
        "    buf = bytearray(16)\n"
        "    part.readblocks(1, buf)\n"
        "t = machine.Timer(-1, period=2, callback=tick)\n"
        "buf = bytearray(64)\n"
        "want = bytearray(64)\n"
        "part.readblocks(0, want)\n"
        "for i in range(150):\n"
        "    part.readblocks(0, buf)\n"
        "    assert buf == want\n"
        "    n.set_i32('main', i)\n"
        "    assert n.get_i32('main') == i\n"
        "t.deinit()\n"
        "print(hits > 5, n.get_i32('tick') == hits)\n"
    )
    assert rig.printed(main) == ["True True"]


def test_time_counts_from_2000_and_can_be_set():
    lines = rig.printed(
        "import time, machine\n"
        "print(time.gmtime(0), time.time() < 5)\n"
        "print(time.mktime((2026, 1, 2, 3, 4, 5, 0, 0)))\n"
        "machine.RTC().datetime((2026, 1, 2, 4, 3, 4, 5, 0))\n"
        "print(time.time() - time.mktime((2026, 1, 2, 3, 4, 5, 0, 0)))\n"
        "print(machine.RTC().datetime()[:7])\n"
        "print(len(time.localtime()), time.gmtime(820638245))"
    )
    assert lines == [
        "(2000, 1, 1, 0, 0, 0, 5, 1) True",
        "820638245",
        "0",
        "(2026, 1, 2, 4, 3, 4, 5)",
        "8 (2026, 1, 2, 3, 4, 5, 4, 2)",
    ]


def test_ticks_have_thirty_bits():
    lines = rig.printed(
        "import time\n"
        "top = time.ticks_add(0, -1)\n"
        "print(top == (1 << 30) - 1, time.ticks_diff(5, time.ticks_add(5, -10)))\n"
        "print(time.ticks_diff(time.ticks_add(top, 3), top))\n"
        "print(time.ticks_ms() < 60000)"
    )
    assert lines == ["True 10", "3", "True"]


def test_ticks_may_start_shortly_before_they_wrap():
    main = (
        "import time, asyncio\n"
        "a = time.ticks_ms()\n"
        "async def nap():\n    await asyncio.sleep_ms(400)\n"
        "asyncio.run(nap())\n"
        "b = time.ticks_ms()\n"
        "print(a > b, 400 <= time.ticks_diff(b, a) < 5000)\n"
    )
    assert rig.printed(main, uptime=2**30 / 1000 - 0.3) == ["True True"]


def test_a_wrong_clock():
    main = "import time\nwhile True:\n    print(time.gmtime()[0])\n    time.sleep_ms(20)\n"
    with rig.running(main) as beacon:
        beacon.wait_for(lambda: "2000\n" in beacon.console, rig.WAIT)
        beacon.set_clock(4102444800)
        beacon.wait_for(lambda: beacon.console.endswith("2100\n"), rig.WAIT)
        assert beacon.clock.unix >= 4102444800


def test_time_that_nobody_waits_for():
    """Ticks and the wall clock jump; a boot after a power cut begins at nought as ever."""
    main = (
        "import time\n"
        "while True:\n"
        "    print(time.ticks_ms() // 100_000, time.time() // 100, '.')\n"
        "    time.sleep_ms(20)\n"
    )
    with rig.running(main) as beacon:
        beacon.wait_for(lambda: beacon.console.endswith("0 0 .\n"), rig.WAIT)
        begun = beacon.clock.now()
        beacon.skip_time(500)
        assert 500 <= beacon.clock.now() - begun < 600
        beacon.wait_for(lambda: beacon.console.endswith("5 5 .\n"), rig.WAIT)
        beacon.power_cut()
        beacon.skip_time(500)
        beacon.power_on()
        beacon.wait_for(lambda: beacon.console.endswith("0 0 .\n"), rig.WAIT)


def test_pins():
    lines = rig.printed(
        "from machine import Pin\n"
        "p = Pin(3, Pin.IN, Pin.PULL_UP)\nprint(p.value(), p(), repr(p))\n"
        "q = Pin(4, Pin.OUT, value=1)\nprint(q.value())\nq.off()\nprint(q.value())\n"
        "q(1)\nprint(q())\n"
        "for bad in (22, 14, -1, 'x'):\n"
        "    try:\n        Pin(bad)\n    except ValueError as e:\n        print(e)"
    )
    assert lines == ["1 1 Pin(3)", "1", "0", "1", *["invalid pin"] * 4]


def test_time_scale():
    main = (
        "import time, asyncio\n"
        "a = time.ticks_ms(); w = time.time()\n"
        "time.sleep(50)\n"
        "async def nap():\n    await asyncio.sleep(50)\n"
        "asyncio.run(nap())\n"
        "print(time.ticks_diff(time.ticks_ms(), a), time.time() - w)\n"
    )
    with rig.running(main, scale=1000) as beacon:
        start = time.monotonic()
        ticks, wall = map(int, rig.finish(beacon, 60).split())
        assert time.monotonic() - start < 100  # a tenth of a second, where nothing else runs
        assert ticks >= 100_000
        assert wall >= 100


def test_scaled_sleeps_of_a_task_are_never_short():
    main = (
        "import time, asyncio\n"
        "async def naps():\n"
        "    short = 0\n"
        "    for i in range(300):\n"
        "        time.sleep_ms(7 * i % 50)\n"
        "        a = time.ticks_us()\n"
        "        await asyncio.sleep_ms(100)\n"
        "        short = max(short, 100_000 - time.ticks_diff(time.ticks_us(), a))\n"
        "    print(short)\n"
        "asyncio.run(naps())\n"
    )
    with rig.running(main, scale=50) as beacon:
        assert rig.finish(beacon) == "0\n"


def test_light_sleep_and_the_clock_seen_from_outside():
    with rig.running(
        "import machine, time\n"
        "machine.RTC().datetime((2026, 1, 2, 4, 3, 4, 5, 0))\n"
        "machine.lightsleep(50)\nprint('awake')"
    ) as beacon:
        assert rig.finish(beacon) == "awake\n"
        assert 0 <= beacon.clock.unix - 1767323045 < 300


@pytest.mark.slow
def test_idle_beacons_cost_next_to_nothing():
    main = (
        "import asyncio\n"
        "flag = asyncio.ThreadSafeFlag()\n"
        "async def tick():\n"
        "    while True:\n        await asyncio.sleep(1)\n"
        "async def main():\n"
        "    asyncio.create_task(tick())\n"
        "    print('ready')\n    await flag.wait()\n"
        "asyncio.run(main())\n"
    )
    content = rig.image({"main.py": main})
    count, seconds = 6, 1.0
    with ExitStack() as stack:
        beacons = [
            stack.enter_context(VirtualBeacon(Flash(content), name=f"b{i}")) for i in range(count)
        ]
        for beacon in beacons:
            beacon.power_on()
        for beacon in beacons:
            beacon.wait_for(lambda b=beacon: "ready" in b.console, rig.WAIT)
        before = _used(beacons)
        time.sleep(seconds)
        used = _used(beacons) - before
    assert used / seconds / count < 0.02  # of a core, each; about 0.0005 on an idle machine


def _used(beacons) -> float:
    """CPU seconds of this process and the interpreters so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for beacon in beacons:
        try:
            with open(f"/proc/{beacon.process}/stat") as file:
                fields = file.read().rpartition(") ")[2].split()
        except OSError:
            pytest.skip("needs /proc")
        total += (int(fields[11]) + int(fields[12])) / 100
    return total
