"""The agent against each cloud's metadata protocol."""

import asyncio
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from cluster.reclaim_agent import ReclaimAgent, find_cloud
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
from serve_app.telemetry import RECLAIM_LEFT, RECLAIM_NOTICES, RECLAIM_UNANSWERED
from tests.support.metadata_server import Aws, Azure, Gcp, MetadataServer, serve


async def watch(
    notices: Notices, refusals: int = 0, metrics: Metrics | None = None
) -> list[tuple[Notice, float]]:
    """Returns what the agent drained for, and with how many seconds left."""
    drained: list[tuple[Notice, float]] = []

    async def drain(notice: Notice, left_s: float) -> bool:
        drained.append((notice, left_s))
        return len(drained) > refusals

    seen = ReclaimMetrics(metrics or Metrics(), "aws")
    await asyncio.wait_for(ReclaimAgent(notices, drain, seen).run(), 20)
    return drained


async def later(act: object) -> None:
    await asyncio.sleep(0.3)
    assert callable(act)
    act()


def in_aws_form(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def take_on_aws(server: MetadataServer, at_s: float) -> None:
    server.action = {"action": "terminate", "time": in_aws_form(at_s)}


async def test_aws_action_drains_with_its_own_deadline() -> None:
    with serve(Aws) as server:
        at_s = time.time() + 120
        act = asyncio.create_task(later(lambda: take_on_aws(server, at_s)))
        [(notice, left_s)] = await watch(AwsNotices(server.url, poll_s=0.05))
        await act
    assert notice.deadline_s == pytest.approx(at_s, abs=1)
    assert left_s == pytest.approx(120, abs=3)


async def test_aws_hint_drains_nothing_but_what_follows_does() -> None:
    with serve(Aws) as server:
        server.hint = {"noticeTime": in_aws_form(time.time())}
        act = asyncio.create_task(later(lambda: take_on_aws(server, time.time() + 120)))
        drained = await watch(AwsNotices(server.url, poll_s=0.05))
        await act
    assert [notice.text for notice, _ in drained] == ["AWS: terminate"]


async def test_aws_token_that_ran_out_is_renewed() -> None:
    with serve(Aws) as server:

        def expire_then_take() -> None:
            server.tokens.clear()
            take_on_aws(server, time.time() + 120)

        act = asyncio.create_task(later(expire_then_take))
        assert len(await watch(AwsNotices(server.url, poll_s=0.05))) == 1
        await act


async def test_service_that_fails_is_asked_again() -> None:
    with serve(Aws) as server:
        server.failures = 2
        take_on_aws(server, time.time() + 120)
        assert len(await watch(AwsNotices(server.url, poll_s=0.05))) == 1


async def test_what_the_cloud_said_and_did_not_say_is_counted() -> None:
    metrics = Metrics()
    with serve(Aws) as server:

        async def take_once_the_hint_is_heard() -> None:
            while not metrics.value(RECLAIM_NOTICES, "aws", "likely"):  # noqa: ASYNC110 - a counter
                await asyncio.sleep(0.05)
            take_on_aws(server, time.time() + 120)

        server.failures = 1
        server.hint = {"noticeTime": in_aws_form(time.time())}
        act = asyncio.create_task(take_once_the_hint_is_heard())
        await watch(AwsNotices(server.url, poll_s=0.05), metrics=metrics)
        await act
    assert metrics.value(RECLAIM_NOTICES, "aws", "likely") == 1
    assert metrics.value(RECLAIM_NOTICES, "aws", "certain") == 1
    assert metrics.value(RECLAIM_LEFT, "aws") == pytest.approx(120, abs=3)
    assert metrics.value(RECLAIM_UNANSWERED, "aws") == 1


async def test_gcp_notice_is_heard_while_a_request_waits() -> None:
    with serve(Gcp) as server:
        act = asyncio.create_task(later(server.preempted.set))
        began_s = time.monotonic()
        [(_, left_s)] = await watch(GcpNotices(server.url))
        await act
    assert time.monotonic() - began_s < 5
    assert left_s == pytest.approx(30, abs=1)


async def test_gcp_notice_from_before_the_agent_is_heard() -> None:
    with serve(Gcp) as server:
        server.preempted.set()
        assert len(await watch(GcpNotices(server.url))) == 1


async def test_azure_event_for_this_machine_drains_and_others_do_not() -> None:
    at_s = time.time() + 45
    before = format_datetime(datetime.fromtimestamp(at_s, UTC), usegmt=True)
    with serve(Azure) as server:
        server.events = [
            {"EventType": "Preempt", "Resources": ["vm-2"], "NotBefore": before},
            {"EventType": "Reboot", "Resources": ["vm-1"], "NotBefore": before},
        ]
        mine: dict[str, object] = {
            "EventType": "Preempt",
            "Resources": ["vm-1"],
            "NotBefore": before,
        }
        act = asyncio.create_task(later(lambda: server.events.append(mine)))
        began_s = time.monotonic()
        [(notice, _)] = await watch(AzureNotices(server.url, poll_s=0.05))
        await act
    assert time.monotonic() - began_s >= 0.3
    assert notice.deadline_s == pytest.approx(at_s, abs=1)


async def test_azure_event_without_a_time_has_no_time_left() -> None:
    with serve(Azure) as server:
        server.events = [{"EventType": "Preempt", "Resources": ["vm-1"], "NotBefore": ""}]
        [(_, left_s)] = await watch(AzureNotices(server.url))
    assert left_s < 1


async def test_drain_that_fails_is_tried_again_while_there_is_time() -> None:
    with serve(Aws) as server:
        take_on_aws(server, time.time() + 120)
        assert len(await watch(AwsNotices(server.url), refusals=2)) == 3


async def test_unknown_answers_are_errors_and_not_notices() -> None:
    with serve(Aws) as server:
        server.action = {"action": "terminate", "time": "soon"}
        with pytest.raises(MetadataError, match="soon"):
            await AwsNotices(server.url).wait()


@pytest.mark.parametrize(("handler", "cloud"), [(Aws, "aws"), (Gcp, "gcp"), (Azure, "azure")])
async def test_cloud_is_known_by_how_its_service_answers(handler: type, cloud: str) -> None:
    with serve(handler) as server:
        assert await find_cloud(dict.fromkeys(("aws", "gcp", "azure"), server.url)) == cloud


async def test_no_cloud_is_none() -> None:
    nobody = "http://127.0.0.1:9"
    assert await find_cloud(dict.fromkeys(("aws", "gcp", "azure"), nobody)) == "none"
