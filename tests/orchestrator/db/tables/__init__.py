"""The tables' modules, one by one."""
