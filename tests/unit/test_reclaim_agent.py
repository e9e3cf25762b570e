"""How a node finds out which cloud it is in."""

from collections.abc import Awaitable, Callable

from cluster.reclaim_agent import wait_for_cloud


def _say(*answers: str) -> Callable[[], Awaitable[str]]:
    left = list(answers)

    async def look() -> str:
        return left.pop(0)

    return look


async def test_cloud_that_answers_late_is_found() -> None:
    assert await wait_for_cloud(_say("none", "none", "gcp"), again_s=0.0) == "gcp"


async def test_node_in_no_cloud_is_not_looked_at_for_ever() -> None:
    assert await wait_for_cloud(_say(*["none"] * 6), again_s=0.0) == "none"
