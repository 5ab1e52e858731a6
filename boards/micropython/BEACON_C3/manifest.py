# What is frozen into the core: the port's own modules but for _boot.py, stage 0, and the app.

# ruff: noqa: F821

FIRMWARE = "$(BOARD_DIR)/../../../firmware"

include("$(MPY_DIR)/extmod/asyncio")
freeze("$(PORT_DIR)/modules", ("flashbdev.py", "inisetup.py", "machine.py"))

# In place of the port's: a filesystem that is damaged does not keep the beacon from starting.
module("_boot.py", base_path="modules")

# A frozen boot.py and main.py win over files of these names.
module("boot.py", base_path=FIRMWARE + "/stage0", opt=2)
module("main.py", base_path=FIRMWARE + "/stage0", opt=2)

# Found by stage 0 as .frozen/app.
package("app", base_path=FIRMWARE, opt=2)
