"""What is counted of adapters, as it travels with engines' and routers' reports."""

import msgspec


class AdapterTally(msgspec.Struct, frozen=True):
    """What an engine's adapters have cost since it started."""

    loads: int = 0
    """Adapters that came into host memory."""
    evictions: int = 0
    """Of those, how many others pushed out."""
    fetch_s: float = 0.0
    """Seconds that loads took, all together, until the files were on disk, checked."""
    hold_s: float = 0.0
    """Seconds from then on until they could be used: for room, for reading, for steps to end."""
    stall_s: float = 0.0
    """Seconds for which steps waited for them."""


class AdapterArrivals(msgspec.Struct, frozen=True):
    """How near requests' adapters were when they came to a router, by the nearest engine."""

    running: int = 0
    """Other requests were running with it."""
    in_memory: int = 0
    """It was in host memory."""
    coming: int = 0
    """An engine was loading it for somebody else."""
    on_disk: int = 0
    """It was held on an engine's disk, and nowhere nearer."""
    away: int = 0
    """No engine knew it; its files may be on disk all the same."""
