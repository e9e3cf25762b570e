"""Watches on each node for its cloud's notice of a reclaim, and drains the node at once.

    python -m cluster.reclaim_agent --address HEAD:6379     finds out which cloud this is
    python -m cluster.reclaim_agent --cloud none            waits; a reclaim shows as a lost node

Notices are best effort on every cloud. What is done at a notice is `ray drain-node`, with the real
deadline, for the node on which this runs: Serve then starts the replacement before it stops the old
replica, where the deadline leaves time for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx

from cluster.reclaim_notices import (
    AwsNotices,
    AzureNotices,
    GcpNotices,
    MetadataError,
    Notice,
    Notices,
)

_logger = logging.getLogger("arriero.reclaim")

_KINDS: dict[str, Callable[[str | None], Notices]] = {
    "aws": AwsNotices,
    "gcp": GcpNotices,
    "azure": AzureNotices,
}
_LONGEST_WAIT_S = 60.0
_DRAIN_TIMEOUT_S = 20.0

Drain = Callable[[Notice, float], Awaitable[bool]]
"""Gets the notice and the seconds that are left; says whether the node is being drained."""


class ReclaimAgent:
    """One node's watch."""

    def __init__(
        self, notices: Notices, drain: Drain, clock: Callable[[], float] = time.time
    ) -> None:
        self._notices = notices
        self._drain = drain
        self._clock = clock

    async def run(self) -> Notice:
        """Wait for a notice that means the end of the node, and return it once it drains."""
        wait_s = 1.0
        while True:
            try:
                notice = await self._notices.wait()
            except (httpx.HTTPError, MetadataError) as error:
                _logger.warning("the metadata service does not answer: %s", error)
                await asyncio.sleep(wait_s)
                wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
                continue
            wait_s = 1.0
            if notice.deadline_s is None:
                _logger.info("the cloud says that a reclaim has become likely: %s", notice.text)
                continue
            if await self._drain_until_done(notice):
                return notice

    async def _drain_until_done(self, notice: Notice) -> bool:
        """Try again while there is time: Ray's head may be away for a moment."""
        assert notice.deadline_s is not None
        while True:
            left_s = max(0.0, notice.deadline_s - self._clock())
            if await self._drain(notice, left_s):
                _logger.warning("%s: the node drains, %.0f s are left", notice.text, left_s)
                return True
            if left_s <= 0:
                _logger.error("%s: the node could not be drained in time", notice.text)
                return True
            await asyncio.sleep(1.0)


def drain_by_ray(address: str, node_id: str) -> Drain:
    """Return what drains this node through Ray's own command."""

    async def drain(notice: Notice, left_s: float) -> bool:
        command = [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            f"--address={address}",
            f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            f"--reason-message={notice.text}",
            f"--deadline-remaining-seconds={max(1, int(left_s))}",
        ]
        try:
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=_DRAIN_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode != 0:
            _logger.warning("ray drain-node failed: %s", (done.stdout + done.stderr)[-500:])
        return done.returncode == 0

    return drain


async def find_cloud(base_urls: dict[str, str]) -> str:
    """Return the cloud whose metadata service answers in its own way; `none` if no one's does."""
    kinds = {name: kind(base_urls.get(name)) for name, kind in _KINDS.items()}
    answers = await asyncio.gather(*(notices.is_here() for notices in kinds.values()))
    return next((name for name, is_here in zip(kinds, answers, strict=True) if is_here), "none")


def main(argv: Sequence[str] | None = None) -> int:
    """Watch until the node is reclaimed, or for ever."""
    parser = argparse.ArgumentParser(prog="python -m cluster.reclaim_agent", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--address", help="of Ray's head, HOST:PORT; default: this node's")
    parser.add_argument("--cloud", choices=["auto", *_KINDS, "none"], default="auto")
    parser.add_argument("--base-url", help="of the metadata service, where it is not the cloud's")
    parser.add_argument("--node-id", help="Ray's id of this node; default: asked of Ray")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_watch(options))
    except KeyboardInterrupt:
        return 130
    return 0


_ASK_NODE_ID = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps(ray.get_runtime_context().get_node_id()))
"""


async def _watch(options: argparse.Namespace) -> None:
    urls = dict.fromkeys(_KINDS, options.base_url) if options.base_url else {}
    cloud = options.cloud if options.cloud != "auto" else await find_cloud(urls)
    _logger.info("watching for reclaims; cloud: %s", cloud)
    if cloud == "none":
        await asyncio.Event().wait()
    address = options.address or "auto"
    node_id = options.node_id or await asyncio.to_thread(_find_node_id, address)
    await ReclaimAgent(_KINDS[cloud](options.base_url), drain_by_ray(address, node_id)).run()
    await asyncio.Event().wait()  # the node's other processes end with it


def _find_node_id(address: str) -> str:
    """Ask Ray, in a process of its own, which node this is."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK_NODE_ID, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    node_id: str = json.loads(done.stdout.splitlines()[-1])
    return node_id


if __name__ == "__main__":
    sys.exit(main())
