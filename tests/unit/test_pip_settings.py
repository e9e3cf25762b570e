from cluster.pip_settings import parse_pip_config, uv_environment


def test_parse_lets_install_win_over_global_and_the_environment_over_both() -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/from/environment'",
            "global.find-links='/from/global'",
            "global.timeout='10'",
            "install.timeout='20'",
            "global.cert='/ca.pem'",
            "download.cert='/other.pem'",
        ]
    )
    assert parse_pip_config(listing) == {
        "find-links": "/from/environment",
        "timeout": "20",
        "cert": "/ca.pem",
    }


def test_parse_leaves_out_what_is_no_setting() -> None:
    assert parse_pip_config("WARNING: something\n\nnonsense\nglobal='x'\n") == {}


def test_parse_keeps_a_value_that_is_not_quoted() -> None:
    assert parse_pip_config("global.proxy=http://p:1") == {"proxy": "http://p:1"}


def test_uv_gets_every_source_of_pip_in_its_own_separators() -> None:
    pip = {
        "index-url": "https://a/simple",
        "extra-index-url": "https://b/simple\nhttps://c/simple",
        "find-links": "/wheels /more",
        "trusted-host": "a b",
        "no-index": "true",
        "cert": "/ca.pem",
        "proxy": "http://p:1",
    }
    found = uv_environment(pip, {})
    assert found["UV_DEFAULT_INDEX"] == "https://a/simple"
    assert found["UV_INDEX"] == "https://b/simple https://c/simple"
    assert found["UV_FIND_LINKS"] == "/wheels,/more"
    assert found["UV_INSECURE_HOST"] == "a b"
    assert found["UV_NO_INDEX"] == "1"
    assert found["SSL_CERT_FILE"] == "/ca.pem"
    assert found["ALL_PROXY"] == "http://p:1"


def test_uv_compares_all_indexes_as_pip_does() -> None:
    assert uv_environment({}, {})["UV_INDEX_STRATEGY"] == "unsafe-best-match"


def test_uv_settings_of_the_user_stay() -> None:
    environ = {"UV_INDEX_URL": "https://mine", "SSL_CERT_FILE": "/mine.pem"}
    found = uv_environment({"index-url": "https://a", "cert": "/ca.pem"}, environ)
    assert "UV_DEFAULT_INDEX" not in found
    assert "SSL_CERT_FILE" not in found


def test_uv_gets_nothing_that_pip_does_not_say() -> None:
    assert set(uv_environment({"no-index": "false"}, {})) == {
        "UV_INDEX_STRATEGY",
        "UV_PYTHON_DOWNLOADS",
    }
