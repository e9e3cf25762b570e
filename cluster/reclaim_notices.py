"""How each cloud says that it takes a spot node back.

| cloud | notice | how it is asked |
|---|---|---|
| AWS | 120 s; a hint earlier | IMDSv2: a token, then `spot/instance-action`, `rebalance` each 5 s |
| Google Cloud | 30 s | `instance/preempted`, a request that waits until it changes |
| Azure | 30 s or more | scheduled events of type `Preempt`, each 5 s |

By the clouds' documents; the base URLs are theirs and can be replaced for tests. No proxy is asked:
the addresses are the node's own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx

_POLL_S = 5.0
_PROBE_S = 2.0
_GCP_HEADERS = {"Metadata-Flavor": "Google"}
_AZURE_HEADERS = {"Metadata": "true"}


class MetadataError(Exception):
    """The metadata service answered what its documents do not say."""


@dataclass(frozen=True)
class Notice:
    """What a cloud said.

    Attributes:
        deadline_s: When the node goes, in seconds since 1970; None for a hint without a time.
        text: For logs and for Ray.
    """

    deadline_s: float | None
    text: str


class Notices(Protocol):
    """One cloud's notices."""

    async def is_here(self) -> bool:
        """Say whether this node is that cloud's."""

    async def wait(self) -> Notice:
        """Return the next notice, each once.

        Raises:
            httpx.HTTPError: The metadata service cannot be reached.
            MetadataError: It answered something else.
        """


class AwsNotices:
    """Instance metadata of AWS, version 2."""

    def __init__(self, base_url: str | None = None, poll_s: float = _POLL_S) -> None:
        self._base_url = base_url or "http://169.254.169.254"
        self._poll_s = poll_s
        self._token = ""
        self._has_hinted = False

    async def is_here(self) -> bool:
        """Ask for a token."""
        try:
            async with _connect(self._base_url, _PROBE_S) as http:
                await self._renew(http)
        except (httpx.HTTPError, MetadataError):
            return False
        return True

    async def wait(self) -> Notice:
        """Poll the action, and the recommendation that may come before it."""
        async with _connect(self._base_url, _PROBE_S) as http:
            while True:
                action = await self._get(http, "spot/instance-action")
                if action is not None:
                    return Notice(_parse_time(action.get("time")), f"AWS: {action.get('action')}")
                hint = await self._get(http, "events/recommendations/rebalance")
                if hint is not None and not self._has_hinted:
                    self._has_hinted = True
                    return Notice(None, "AWS: rebalance recommendation")
                await asyncio.sleep(self._poll_s)

    async def _get(self, http: httpx.AsyncClient, path: str) -> dict[str, Any] | None:
        """Return what is there; None for nothing. A token that ran out is renewed."""
        for _ in range(2):
            if not self._token:
                await self._renew(http)
            headers = {"X-aws-ec2-metadata-token": self._token}
            answer = await http.get(f"/latest/meta-data/{path}", headers=headers)
            if answer.status_code != 401:
                break
            self._token = ""
        if answer.status_code == 404:
            return None
        return _parse_object(answer)

    async def _renew(self, http: httpx.AsyncClient) -> None:
        answer = await http.put(
            "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        )
        if answer.status_code != 200 or not answer.text:
            raise MetadataError(f"AWS gave no token: status {answer.status_code}")
        self._token = answer.text


class GcpNotices:
    """Metadata server of Google Cloud."""

    def __init__(self, base_url: str | None = None, notice_s: float = 30.0) -> None:
        self._base_url = base_url or "http://metadata.google.internal"
        self._notice_s = notice_s

    async def is_here(self) -> bool:
        """Look for the header that only this server sends."""
        try:
            async with _connect(self._base_url, _PROBE_S) as http:
                answer = await http.get("/computeMetadata/v1/instance/id", headers=_GCP_HEADERS)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and answer.headers.get("Metadata-Flavor") == "Google"

    async def wait(self) -> Notice:
        """Hold a request that is answered when the value changes, or after five minutes."""
        path, wait = "/computeMetadata/v1/instance/preempted", False
        async with _connect(self._base_url, 330.0) as http:
            while True:
                # First without waiting: it may have changed while nobody asked.
                query = {"wait_for_change": "true", "timeout_sec": "300"} if wait else {}
                answer = await http.get(path, params=query, headers=_GCP_HEADERS)
                if answer.status_code != 200 or answer.text not in ("TRUE", "FALSE"):
                    raise MetadataError(f"Google Cloud answered {answer.status_code}")
                if answer.text == "TRUE":
                    return Notice(time.time() + self._notice_s, "Google Cloud: preempted")
                wait = True


class AzureNotices:
    """Scheduled events of Azure's instance metadata service."""

    def __init__(self, base_url: str | None = None, poll_s: float = _POLL_S) -> None:
        self._base_url = base_url or "http://169.254.169.254"
        self._poll_s = poll_s

    async def is_here(self) -> bool:
        """Ask for this machine's name."""
        try:
            async with _connect(self._base_url, _PROBE_S) as http:
                return bool(await self._get_name(http))
        except (httpx.HTTPError, MetadataError):
            return False

    async def wait(self) -> Notice:
        """Poll for an event that takes this machine."""
        # The first call starts the service for this machine: it may take two minutes.
        async with _connect(self._base_url, 130.0) as http:
            name = await self._get_name(http)
            while True:
                found = await self._find(http, name)
                if found is not None:
                    return found
                await asyncio.sleep(self._poll_s)

    async def _find(self, http: httpx.AsyncClient, name: str) -> Notice | None:
        answer = await http.get(
            "/metadata/scheduledevents",
            params={"api-version": "2020-07-01"},
            headers=_AZURE_HEADERS,
        )
        for event in _parse_object(answer).get("Events", []):
            if event.get("EventType") == "Preempt" and name in event.get("Resources", []):
                # Without a time the event has begun.
                at_s = _parse_time(event.get("NotBefore") or None)
                return Notice(time.time() if at_s is None else at_s, "Azure: Preempt")
        return None

    async def _get_name(self, http: httpx.AsyncClient) -> str:
        answer = await http.get(
            "/metadata/instance/compute",
            params={"api-version": "2021-02-01"},
            headers=_AZURE_HEADERS,
        )
        name = _parse_object(answer).get("name")
        if not isinstance(name, str):
            raise MetadataError("Azure's instance metadata has no name")
        return name


def _connect(base_url: str, timeout_s: float) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=base_url, timeout=timeout_s, trust_env=False)


def _parse_object(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != 200:
        raise MetadataError(f"{answer.request.url.path} answered {answer.status_code}")
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise MetadataError(f"{answer.request.url.path} answered no JSON object")
    return content


def _parse_time(text: object) -> float | None:
    """Return seconds since 1970 from AWS's form or Azure's; None for none."""
    if text is None:
        return None
    try:
        if str(text).endswith("Z"):
            return (
                datetime.fromisoformat(str(text).removesuffix("Z")).replace(tzinfo=UTC).timestamp()
            )
        return parsedate_to_datetime(str(text)).timestamp()
    except ValueError as error:
        raise MetadataError(f"a time in an unknown form: {text!r}") from error
