"""Starts D-Bus and BlueZ, and runs the commands that come through the control port.

A line of the port is JSON: ``id`` and ``argv`` start a command, ``id`` and ``signal`` end one. The
answer has ``id``, ``code``, ``out``, ``err``, ``seconds``.
"""

import glob
import json
import os
import subprocess
import sys
import threading
import time

sys.path.insert(0, "/guest")

from bridge import run_bridge  # noqa: E402

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec/bluetooth",
    "HOME": "/root",
    "PYTHONPATH": "/guest/site:/guest/host",
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "LANG": "C.UTF-8",
}


class Agent:
    def __init__(self, port):
        self._port = port
        self._write = threading.Lock()
        self._running = {}

    def say(self, **fields):
        line = json.dumps(fields).encode() + b"\n"
        with self._write:
            while line:
                line = line[os.write(self._port, line) :]

    def serve(self):
        buffer = b""
        while True:
            data = os.read(self._port, 4096)
            if not data:
                time.sleep(0.1)
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, asked):
        if "signal" in asked:
            threading.Thread(target=self._signal, args=(asked,), daemon=True).start()
            return
        for name, text in asked.get("files", {}).items():
            with open("/root/" + name, "w") as file:
                file.write(text)
        threading.Thread(target=self._run, args=(asked,), daemon=True).start()

    def _signal(self, asked):
        while asked["id"] not in self._running:  # it is being started
            time.sleep(0.05)
        self._running[asked["id"]].send_signal(asked["signal"])

    def _run(self, asked):
        begun = time.monotonic()
        try:
            process = subprocess.Popen(
                asked["argv"],
                env={**ENVIRONMENT, **asked.get("env", {})},
                cwd="/root",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._running[asked["id"]] = process
            out, err = process.communicate()
            code = process.returncode
        except OSError as error:
            out, err, code = "", str(error), -1
        took = time.monotonic() - begun
        self.say(id=asked["id"], code=code, out=out, err=err, seconds=round(took, 2))


def find_port(name):
    for path in glob.glob("/sys/class/virtio-ports/*/name"):
        with open(path) as file:
            if file.read().strip() == name:
                return os.open("/dev/" + path.split("/")[-2], os.O_RDWR)
    raise OSError("no port " + name)


def start(*argv):
    return subprocess.Popen(argv, env=ENVIRONMENT, stdin=subprocess.DEVNULL)


def main():
    subprocess.run(["dbus-uuidgen", "--ensure"], env=ENVIRONMENT, check=False)
    start("dbus-daemon", "--system", "--nofork", "--nopidfile")
    while not os.path.exists("/run/dbus/system_bus_socket"):
        time.sleep(0.05)
    run_bridge(find_port("hci"))
    start("/guest/bluetoothd")
    agent = Agent(find_port("control"))
    while True:  # until there is an adapter that is on
        shown = subprocess.run(
            ["bluetoothctl", "show"], env=ENVIRONMENT, capture_output=True, text=True, timeout=30
        ).stdout
        print(shown, flush=True)
        if "Powered: yes" in shown:
            break
        time.sleep(0.5)
    agent.say(id=0, code=0, out=shown, err="", seconds=time.monotonic())
    agent.serve()


main()
