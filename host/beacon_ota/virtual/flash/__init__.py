"""The flash chip and its content: NOR rules, partitions, otadata, NVS."""
