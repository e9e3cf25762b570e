"""The settings' section on adapters, and the forms of their sources."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.adapter_source import member_of, parse_source
from serve_app.config import parse_settings
from serve_app.config_file import ServeFile
from serve_app.config_summary import summarize
from serve_app.errors import ConfigError
from tests.support.settings import write_args, write_model

# Importing vLLM and Ray warns about their own use of deprecated calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SQL = {"name": "sql", "base": "tiny", "source": "/adapters/sql"}


def refuse(*declared: dict[str, Any], **section: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        write(*declared, **section)
    return str(caught.value)


def write(*declared: dict[str, Any], **section: Any) -> Any:
    models = [write_model(adapters={}, aliases=["small"]), write_model("plain")]
    return parse_settings(write_args(*models, adapters={"declared": list(declared), **section}))


def test_adapter_needs_only_name_base_and_source() -> None:
    (adapter,) = write(SQL).adapters.declared
    assert adapter.full_name == "tiny:sql"
    assert adapter.source == "file:///adapters/sql"
    assert adapter.tenant is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "none"}, "adapters.declared[0].base is 'none', and models has tiny, plain"),
        ({"base": "small"}, "name one of these (not an alias)"),
        ({"base": "plain"}, "adapters.declared[0].base is 'plain', whose adapters is null"),
        ({"name": "a:b"}, "must be 1 to 128 letters"),
        ({"name": "../x"}, "must be 1 to 128 letters"),
        ({"source": "sql"}, "must be an absolute path"),
        ({"source": "/a/../b"}, "must be an absolute path"),
        ({"aliases": ["tiny"]}, "have the name or alias 'tiny' twice"),
        ({"aliases": ["a", "a"]}, "have the name or alias 'a' twice"),
        ({"alias": "x"}, "alias"),
    ],
)
def test_adapter_that_contradicts_the_rest_is_refused_with_the_remedy(
    changes: dict[str, Any], words: str
) -> None:
    assert words in refuse(SQL | changes)


def test_two_of_one_name_are_refused() -> None:
    assert "has the adapter 'tiny:sql' twice" in refuse(SQL, SQL | {"source": "/other"})
    family = {"base": "tiny", "source": "/all"}
    assert "has the base and prefix 'tiny:' twice" in refuse(
        families=[family, family | {"source": "s3://b/x"}]
    )
    assert len(write(families=[family, family | {"prefix": "t-"}]).adapters.families) == 2


def test_repository_of_the_hub_is_no_family() -> None:
    assert "a hub's id is one adapter" in refuse(families=[{"base": "tiny", "source": "a/b"}])


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/a/b/", "file:///a/b"),
        ("//a/./b", "file:///a/b"),
        ("file:///a/b", "file:///a/b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("gs://bucket/a/b", "gs://bucket/a/b"),
        ("team/sql", "hf://team/sql@main"),
        ("team/sql@v2", "hf://team/sql@v2"),
        ("hf://team/sql@v2", "hf://team/sql@v2"),
    ],
)
def test_source_has_one_form(text: str, source: str) -> None:
    assert parse_source(text) == source
    assert parse_source(source) == source


@pytest.mark.parametrize(
    "text",
    [
        *("", "sql", "./sql", "a/b/c", "../a/b", "/a/../b", "/a#b", "/a\nb", "s3://bucket"),
        *(
            "s3://bucket/../x",
            "s3://bucket/a?x=1",
            "http://host/a",
            "file://host/a",
            "/" + "a" * 2000,
        ),
        *("team/..", "team/sql@../x", "s3:///a"),
    ],
)
def test_text_that_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an absolute path"):
        parse_source(text)


def test_member_of_a_family_is_the_folder_of_its_name() -> None:
    assert member_of("s3://bucket/all", "sql") == "s3://bucket/all/sql"
    assert member_of("file:///", "sql") == "file:///sql"


def test_summary_says_where_adapters_come_from(tmp_path: Path) -> None:
    settings = write(SQL, families=[{"base": "tiny", "source": "s3://b/all"}])
    text = summarize(ServeFile(tmp_path / "c.yaml", "127.0.0.1", 8000, "arriero", settings))
    assert "Adapters: 1 declared, and all under s3://b/all; at most 50 GiB" in text
