"""``python -m beacon_ota`` is the command ``beacon-ota``."""

from beacon_ota.cli import main

main()
