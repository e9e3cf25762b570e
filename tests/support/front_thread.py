"""A front over cells of this machine, in a thread of this process, with a real HAProxy."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.cells import CellWatch
from cluster.front import Front, HAProxy
from cluster.front_parts import find_haproxy
from serve_app.cell_messages import PeerCell
from serve_app.config_front import FrontSettings


@contextmanager
def fronting(
    urls: Mapping[str, str],
    port: int,
    folder: Path,
    show_cells: Callable[[Sequence[PeerCell]], None] = lambda cells: None,
) -> Iterator[HAProxy]:
    """Runs a front while the context lasts; cells may not have been seen yet when it begins.

    Args:
        urls: Of the cells, by name.
        port: Of 127.0.0.1.
        folder: For its files; short, as sockets are in it.
        show_cells: As `Front` has it.
    """
    cells = [{"name": name, "url": url} for name, url in urls.items()]
    settings = FrontSettings.model_validate(
        {"port": port, "period_s": 0.2, "stop_s": 2.0, "cells": cells}
    )
    haproxy, watch = HAProxy(settings, folder, find_haproxy()), CellWatch(is_open=False)
    front = Front(settings, haproxy, watch, None, lambda line: None, show_cells)
    is_over = threading.Event()
    thread = threading.Thread(target=front.run, args=(is_over.is_set,), daemon=True)
    thread.start()
    try:
        yield haproxy
    finally:
        is_over.set()
        thread.join()
        haproxy.stop()
        haproxy.wait()
        watch.close()
