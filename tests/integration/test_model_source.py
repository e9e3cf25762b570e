"""Models out of an object store: the real client library against an S3 server on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from deployments import model_source
from deployments.model_source import fetch_model
from serve_app.config_model import ObjectStoreSource
from serve_app.errors import EngineStartError

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "sub/tokenizer.json": b"words"}


def source(path: str = "models/tiny") -> ObjectStoreSource:
    return ObjectStoreSource(kind="object_store", uri=f"s3://{path}")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator["boto3.client"]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(model_source, "default_cache_dir", lambda: tmp_path / "cache")
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    for name, content in FILES.items():
        client.put_object(Bucket="models", Key=f"tiny/{name}", Body=content)
    yield client
    client.close()
    server.stop()


def left_in(cache: Path) -> list[Path]:
    return [path for path in (cache / "objects").iterdir() if path.suffix != ".lock"]


def test_folder_is_copied_once_and_again_when_it_changes(
    bucket: "boto3.client", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(fetch_model(source()))
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == FILES
    with monkeypatch.context() as patch:
        patch.setattr(model_source, "_copy_folder", None)  # A second copy would fail.
        assert fetch_model(source("models/tiny/")) == str(folder)
        assert fetch_model(source()) == str(folder)
    bucket.put_object(Bucket="models", Key="tiny/config.json", Body=json.dumps({"a": 1}).encode())
    changed = Path(fetch_model(source()))
    assert changed != folder
    assert json.loads((changed / "config.json").read_text()) == {"a": 1}
    assert (folder / "config.json").read_bytes() == b"{}"  # An engine may be reading it.


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere/tiny", "cannot be read"),
        ("models/tin", "holds no config.json"),
        ("models/tiny/sub", "holds no config.json"),
    ],
)
def test_source_that_holds_no_model_is_refused(
    bucket: "boto3.client", path: str, words: str
) -> None:
    with pytest.raises(EngineStartError, match=words) as caught:
        fetch_model(source(path))
    assert f"s3://{path}" in str(caught.value)


def test_store_that_cannot_be_reached_is_named(
    bucket: "boto3.client", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(EngineStartError, match=r"cannot be read.*network and the credentials"):
        fetch_model(source())


def test_copy_that_breaks_off_leaves_nothing(
    bucket: "boto3.client", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(self: Path, target: Path) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", break_off)
        with pytest.raises(EngineStartError, match="could not be copied: No space left on device"):
            fetch_model(source())
    assert left_in(tmp_path / "cache") == []
    assert (Path(fetch_model(source())) / "config.json").is_file()
