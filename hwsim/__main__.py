"""``python -m hwsim`` is the same as ``hwsim``."""

from hwsim.cli import main

main()
