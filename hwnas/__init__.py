"""hwnas: hardware-aware search for robust image networks, from a device to a verified engine.

The public functions, one per command, are in `hwnas.api`. Importing this package loads nothing
heavy.
"""

__version__ = "0.1.0"
