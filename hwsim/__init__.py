"""hwsim: hardware-aware simulation of RRAM/SRAM neuromorphic accelerators.

Importing this package is lean: it loads neither torch nor pandas nor matplotlib. Import what you need by name, for
example ``from hwsim.device.store import Rram, place, draw``.
"""

__version__ = "0.1.0"
