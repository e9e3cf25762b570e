"""What the user's pip is told about package sources, said again in uv's words.

People configure pip: a company index, a folder of wheels, a certificate, a proxy. uv reads none of
that, so the set-up asks pip for its effective settings and hands them to uv by environment.
Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

_SECTIONS = ("global", "install", ":env:")  # later ones win, as in pip


def parse_pip_config(listing: str) -> dict[str, str]:
    """Return the settings that `pip install` would use, from the output of `pip config list`.

    Each line is `section.name='value'`. A setting for `install` wins over a global one, and one
    from the environment over both. Lines of other commands, and unreadable ones, are left out.
    """
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listing.splitlines():
        key, separator, text = line.partition("=")
        section, dot, name = key.strip().partition(".")
        if separator and dot and section in found:
            found[section][name.replace("_", "-")] = _unquote(text.strip())
    merged: dict[str, str] = {}
    for section in _SECTIONS:
        merged.update(found[section])
    return merged


def uv_environment(pip: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that make uv use pip's sources.

    What the user has set for uv itself stays as it is.

    Args:
        pip: Effective pip settings by name, such as `find-links`.
        environ: The environment that uv will inherit.
    """
    wanted = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(pip.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "UV_NO_INDEX": "1" if _is_true(pip.get("no-index", "")) else "",
        "UV_HTTP_TIMEOUT": pip.get("timeout", pip.get("default-timeout", "")),
        "SSL_CERT_FILE": pip.get("cert", ""),
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "ALL_PROXY": pip.get("proxy", ""),
        # pip takes the best match of all indexes; uv would stop at the first that has the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    return {
        name: value
        for name, value in wanted.items()
        if value and name not in environ and not _is_set_by_old_name(name, environ)
    }


def _is_set_by_old_name(name: str, environ: Mapping[str, str]) -> bool:
    older = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
    return older.get(name, name) in environ


def _unquote(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, str) else text


def _is_true(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on"}
