# A virtual beacon's main.py: device_loop.py on its own flash. The port, how much and how often
# lie beside it in job.json.

import json
import sys
import time

sys.path.append("/app")

import device_loop
import network
from esp32 import Partition

with open("/job.json") as file:
    job = json.load(file)
wlan = network.WLAN()
wlan.active(True)
wlan.connect("bench")
while not wlan.isconnected():
    time.sleep_ms(20)
slot = Partition.find(Partition.TYPE_APP, label="ota_1")[0]
print("took", json.dumps(device_loop.race(slot, *job)))
