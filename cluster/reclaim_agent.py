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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from cluster.machine import address_towards
from cluster.reclaim_metrics import ReclaimMetrics
from cluster.reclaim_notices import (
    AwsNotices,
    AzureNotices,
    GcpNotices,
    MetadataError,
    Notice,
    Notices,
)
from serve_app.metrics import Metrics
from serve_app.metrics_book import RayBook
from serve_app.metrics_server import MetricsServer

_logger = logging.getLogger("arriero.reclaim")

_KINDS: dict[str, Callable[[str | None], Notices]] = {
    "aws": AwsNotices,
    "gcp": GcpNotices,
    "azure": AzureNotices,
}
_LONGEST_WAIT_S = 60.0
_DRAIN_TIMEOUT_S = 20.0
_LOOKS = 6
_LOOK_AGAIN_S = 20.0

Drain = Callable[[Notice, float], Awaitable[bool]]
"""Gets the notice and the seconds that are left; says whether the node is being drained."""


class ReclaimAgent:
    """One node's watch.

    Args:
        notices: Of the node's cloud.
        drain: Drains the node.
        seen: Where it is counted.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        notices: Notices,
        drain: Drain,
        seen: ReclaimMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._notices = notices
        self._drain = drain
        self._seen = seen
        self._clock = clock

    async def run(self) -> Notice:
        """Wait for a notice that means the end of the node, and return it once it drains."""
        wait_s = 1.0
        while True:
            try:
                notice = await self._notices.wait()
            except (httpx.HTTPError, MetadataError) as error:
                _logger.warning("the metadata service does not answer: %s", error)
                self._seen.unanswered.add()
                await asyncio.sleep(wait_s)
                wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
                continue
            wait_s = 1.0
            if notice.deadline_s is None:
                self._seen.likely.add()
                _logger.info("the cloud says that a reclaim has become likely: %s", notice.text)
                continue
            if await self._drain_until_done(notice):
                return notice

    async def _drain_until_done(self, notice: Notice) -> bool:
        """Try again while there is time: Ray's head may be away for a moment."""
        assert notice.deadline_s is not None
        self._seen.certain.add()
        while True:
            left_s = max(0.0, notice.deadline_s - self._clock())
            if await self._drain(notice, left_s):
                self._seen.left_s.set(left_s)
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


async def wait_for_cloud(look: Callable[[], Awaitable[str]], again_s: float = _LOOK_AGAIN_S) -> str:
    """Look again for a while: where a node has just started, its network may not have."""
    for _ in range(_LOOKS - 1):
        cloud = await look()
        if cloud != "none":
            return cloud
        await asyncio.sleep(again_s)
    return await look()


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


_ASK_RAY = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
context = ray.get_runtime_context()
print(json.dumps([context.get_node_id(), context.gcs_address]))
"""


async def _watch(options: argparse.Namespace) -> None:
    urls = dict.fromkeys(_KINDS, options.base_url) if options.base_url else {}
    cloud = options.cloud
    if cloud == "auto":
        cloud = await wait_for_cloud(lambda: find_cloud(urls))
    _logger.info("watching for reclaims; cloud: %s", cloud)
    if cloud == "none":
        await asyncio.Event().wait()
    node_id, head = options.node_id, options.address
    if not node_id or not head:
        found = await asyncio.to_thread(_ask_ray, head or "auto")
        node_id, head = node_id or found[0], head or found[1]
    metrics = Metrics()
    agent = ReclaimAgent(
        _KINDS[cloud](options.base_url), drain_by_ray(head, node_id), ReclaimMetrics(metrics, cloud)
    )
    with _shown(metrics, head, node_id):
        await agent.run()
        await asyncio.Event().wait()  # the node's other processes end with it


@contextmanager
def _shown(metrics: Metrics, head: str, node_id: str) -> Iterator[None]:
    """Show metrics at this node's address; gateways list it. The watch goes on without."""
    name = f"reclaim-agent-{node_id}"
    try:
        host = address_towards(head)
        server = MetricsServer(metrics, host, "reclaim-agent", name, RayBook(head))
    except OSError as error:
        _logger.warning("metrics are not shown: %s", error)
        yield
        return
    server.start()
    try:
        yield
    finally:
        server.stop()


def _ask_ray(address: str) -> tuple[str, str]:
    """Ask Ray, in a process of its own, which node this is, and where its head."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK_RAY, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    node_id, head = json.loads(done.stdout.splitlines()[-1])
    return node_id, head


if __name__ == "__main__":
    sys.exit(main())
