"""The flash chip and what is on it: NOR rules, partitions, otadata, NVS."""
