"""Unit tests of `deployments.sigterm`, in processes of their own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_ON_ANOTHER_THREAD = """
import asyncio, threading, time
from deployments.sigterm import hear_sigterm

async def listen():
    heard = asyncio.Event()
    hear_sigterm(heard.set)
    await asyncio.sleep(0.3)
    print("listening", flush=True)
    await heard.wait()
    print("heard", flush=True)

thread = threading.Thread(target=lambda: asyncio.run(listen()))
thread.start()
while thread.is_alive():
    time.sleep(0.1)
"""
_ON_THE_MAIN_THREAD = """
import asyncio
from deployments.sigterm import hear_sigterm

async def listen():
    heard = asyncio.Event()
    hear_sigterm(heard.set)
    print("listening", flush=True)
    await heard.wait()
    print("heard", flush=True)

asyncio.run(listen())
"""


@pytest.mark.parametrize("program", [_ON_ANOTHER_THREAD, _ON_THE_MAIN_THREAD])
def test_sigterm_is_heard_on_the_event_loop_and_ends_nothing(program: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "heard\n"
        assert process.wait(10.0) == 0
