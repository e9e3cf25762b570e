"""Asks a running platform's admin API, for the command line."""

import os
import sys
from typing import Any
from urllib.parse import urlsplit

import httpx

from serve_app.config import is_loopback
from serve_app.errors import CommandError

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "ARRIERO_ADMIN_KEY"
URL_VARIABLE = "ARRIERO_URL"

_TIMEOUT_S = 30.0
_FETCH_TIMEOUT_S = 900.0
"""What an adapter may take to be fetched from afar, and to be checked."""


class AdminClient:
    """Sends requests with the administrator's key. What is refused becomes a `CommandError`.

    Args:
        url: The platform's address. None takes `ARRIERO_URL`, or else this machine's default port.
        needs_key: Whether nothing that is asked may go without a key.
    """

    def __init__(self, url: str | None, *, needs_key: bool = True) -> None:
        self._url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key and needs_key:
            raise CommandError(
                f"{KEY_VARIABLE} is not set. Set it to a key with the scope admin; "
                "`arriero keys create --bootstrap CONFIG` makes the first one."
            )
        if not key.isascii() or not key.isprintable():
            raise CommandError(f"{KEY_VARIABLE} does not hold a key; it has odd characters.")
        parts = urlsplit(self._url)
        if key and parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            print("Warning: the key travels unencrypted; use https.", file=sys.stderr)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def call(self, method: str, path: str, body: Any = None, **query: str | None) -> Any:
        """Returns the answer's JSON, or its text where it is none.

        Raises:
            CommandError: It was refused, or nobody answered.
        """
        params = {name: value for name, value in query.items() if value is not None}
        timeout_s = _FETCH_TIMEOUT_S if path.startswith("/admin/adapters") else _TIMEOUT_S
        answer = self._request(
            method, path, timeout_s, json=body, params=params, headers=self._headers
        )
        if "json" in answer.headers.get("content-type", ""):
            return answer.json()
        return answer.text

    def send(self, path: str, body: bytes, request_id: str, key: str | None) -> str:
        """Sends a request for a model; returns its answer as it came.

        Args:
            path: Such as `/v1/completions`.
            body: JSON.
            request_id: To be found by.
            key: Whose request it is; None takes the administrator's.

        Raises:
            CommandError: It was refused, or nobody answered.
        """
        headers = {"content-type": "application/json", "x-request-id": request_id}
        headers |= self._headers if key is None else {"authorization": f"Bearer {key}"}
        answer = self._request("POST", path, _FETCH_TIMEOUT_S, content=body, headers=headers)
        return answer.text

    def _request(self, method: str, path: str, timeout_s: float, **content: Any) -> httpx.Response:
        try:
            answer = httpx.request(method, f"{self._url}{path}", timeout=timeout_s, **content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(
                f"{self._url} does not answer ({type(error).__name__}). Is it up? "
                f"Another address is given by --url or {URL_VARIABLE}."
            ) from None
        if answer.is_error:
            raise CommandError(_explain(answer))
        return answer


def _explain(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The answer was HTTP {answer.status_code}; is this an Arriero gateway?"
