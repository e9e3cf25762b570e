"""Keeps Ray Serve's log of a replica while a model is loaded.

What loads it configures logging, by `logging.config.dictConfig`, which closes every
handler that there is. One of them is Serve's buffer before the replica's log file. Without it Serve
writes no more; and a new controller, which asks each replica for that file's name, gets an error
and stops the replica: the death of Serve's controller would restart every engine.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

_SERVE = "ray.serve"


@contextmanager
def serve_log_kept() -> Iterator[None]:
    """Gives Serve's buffers their files back at the end."""
    found = logging.getLogger(_SERVE).handlers
    targets = [(each, each.target) for each in found if isinstance(each, MemoryHandler)]
    yield
    for handler, target in targets:
        handler.setTarget(target)
