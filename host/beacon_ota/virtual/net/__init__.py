"""WiFi and the network behind it: names, proxies, faults."""
