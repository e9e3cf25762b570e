"""Rules about where files may be."""

from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_sky_folder_holds_no_python() -> None:
    assert list((_ROOT / "sky").rglob("*.py")) == []


def test_package_markers_are_empty() -> None:
    markers = [
        path
        for top in ("serve_app", "deployments", "cluster")
        for path in (_ROOT / top).rglob("__init__.py")
    ]
    assert markers
    assert [path for path in markers if path.read_text()] == []
