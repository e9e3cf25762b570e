import json

import pytest

from serve_app.gateway.null_params import drop_nulls

PATH = "/v1/responses"


def test_null_that_says_the_default_is_left_out_and_all_else_stays() -> None:
    body = b'{"input": "a null", "truncation" : null , "user":null, "temperature": 1e0}'
    assert json.loads(drop_nulls(PATH, body)) == {
        "input": "a null",
        "user": None,
        "temperature": 1.0,
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, b'{"truncation": "auto", "background": false}'),
        ("/v1/completions", b'{"truncation": null}'),
        (PATH, b'{"\xff": null}'),
    ],
)
def test_whatever_else_comes_is_passed_on_as_it_is(path: str, body: bytes) -> None:
    assert drop_nulls(path, body) is body


@pytest.mark.parametrize("body", [b'{"truncation": "null"}', b'{"text": {"truncation": null}}'])
def test_null_elsewhere_is_kept(body: bytes) -> None:
    assert json.loads(drop_nulls(PATH, body)) == json.loads(body)
