"""Hears SIGTERM in a process whose main thread is Ray's.

Python sets signal handlers in the main thread only, and runs them there. In a Ray actor that thread
waits in C++ for tasks, and actors' code is on another. What Python's own C handler does at once is
to write to a file descriptor, which any thread's event loop may watch; that is set by a call that
the main thread makes when it next runs Python, which is at the next health check.
"""

import asyncio
import ctypes
import logging
import signal
import socket
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

_PendingCall = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_kept: list[object] = []
"""What the interpreter and the kernel know by address only."""


def hear_sigterm(on_sigterm: Callable[[], None]) -> None:
    """Has every SIGTERM to this process call back, instead of ending it. To be called once.

    Args:
        on_sigterm: Called on the event loop that runs now.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)

    def read() -> None:
        if signal.SIGTERM in reader.recv(4096):
            on_sigterm()

    def install(_: object = None) -> int:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        return 0

    asyncio.get_running_loop().add_reader(reader, read)
    _kept.extend([reader, writer])
    if threading.current_thread() is threading.main_thread():
        install()
        return
    pending = _PendingCall(install)
    _kept.append(pending)
    if ctypes.pythonapi.Py_AddPendingCall(pending, None) != 0:
        logger.warning("SIGTERM will end this process at once: too many calls are pending.")
