"""The process: console, devices, other processes, signals."""
