"""A block of a card that says where its numbers come from."""

from typing import Annotated, Literal

from pydantic import Field

from hwsim.config import Settings

Evidence = Literal[
    "measured-array", "measured-chip", "fit-to-measured", "circuit-sim", "synthesis", "pre-silicon",
    "architecture-paper", "assumed",
]  # fmt: skip
Text = Annotated[str, Field(pattern=r"\S")]


class Cited(Settings):
    """A block of a card that says where its numbers come from."""

    source: Text
    """Where the numbers stand: DOI and table or figure, or repository, commit and file."""
    evidence: Evidence
    """How the numbers came about."""
    note: str = ""
    """What a user should know about them: doubts, conditions, license."""
