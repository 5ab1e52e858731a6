"""BlueZ over a radio space: its D-Bus objects, and its habits, for bleak's own backend on Linux."""
