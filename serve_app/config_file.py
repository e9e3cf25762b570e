"""Reads a Ray Serve config file whose application is this platform."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from serve_app.config import Settings, check_exposure, parse_settings
from serve_app.config_fleet import FleetSettings
from serve_app.config_front import FrontSettings
from serve_app.config_problems import describe_invalid, find_unknown_keys, list_problems
from serve_app.config_section import Section
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

IMPORT_PATH = "serve_app.main:build"
_S = TypeVar("_S", bound=Section)


@dataclass(frozen=True)
class ServeFile:
    """A config file that is valid as a whole.

    Attributes:
        path: Where it was read.
        host: Address that Serve's proxy listens on.
        port: Port that Serve's proxy listens on.
        app_name: Name of the application that is this platform.
        settings: What its `args` say.
    """

    path: Path
    host: str
    port: int
    app_name: str
    settings: Settings


@dataclass(frozen=True)
class FleetFile:
    """What a config file says of its fleet. The rest of the file has not been checked.

    Attributes:
        path: Where it was read.
        fleet: What `fleet` says.
        state_dir: What `store.state_dir` says; None where it says nothing.
    """

    path: Path
    fleet: FleetSettings
    state_dir: str | None


@dataclass(frozen=True)
class FrontFile:
    """What a config file says of a front. The rest of the file has not been checked.

    Attributes:
        path: Where it was read.
        front: What `front` says.
        fleet: What `fleet` says; None where it says nothing.
        state_dir: What `store.state_dir` says; None where it says nothing.
    """

    path: Path
    front: FrontSettings
    fleet: FleetFile | None
    state_dir: str | None


def load_fleet_file(path: Path) -> FleetFile:
    """Read what a file says of its fleet, without Ray and vLLM: seconds less, on any machine.

    Raises:
        ConfigError: It cannot be read, has no fleet, or the fleet is not valid.
    """
    args = _read_args(path)
    fleet = _read_section(path, args, "fleet", FleetSettings, "configs/local-fleet.yaml")
    return FleetFile(path.resolve(), fleet, _state_dir_in(args))


def load_front_file(path: Path) -> FrontFile:
    """Read what a file says of a front, and of the fleet whose cells it may have.

    Raises:
        ConfigError: It cannot be read, has no front, or front or fleet are not valid.
    """
    args = _read_args(path)
    front = _read_section(path, args, "front", FrontSettings, "configs/front.yaml")
    fleet = load_fleet_file(path) if args.get("fleet") is not None else None
    return FrontFile(path.resolve(), front, fleet, _state_dir_in(args))


def _read_args(path: Path) -> dict[str, Any]:
    content = _read_mapping(path)
    apps = [app for app in content.get("applications") or [] if isinstance(app, dict)]
    ours = next((app for app in apps if app.get("import_path") == IMPORT_PATH), {})
    args = ours.get("args")
    return args if isinstance(args, dict) else {}


def _read_section(path: Path, args: dict[str, Any], name: str, kind: type[_S], example: str) -> _S:
    if args.get(name) is None:
        raise ConfigError(
            f"{path}: has no `{name}` under the args of the application with import_path: "
            f"{IMPORT_PATH}. docs/configuration.md says what stands there; "
            f"{example} is an example that runs on this machine."
        )
    try:
        return kind.model_validate(args[name])
    except ValidationError as error:
        problems = list(describe_invalid(error, kind))
        raise ConfigError(list_problems(f"{path}: {name} is not valid", problems)) from None


def _state_dir_in(args: dict[str, Any]) -> str | None:
    store = args.get("store")
    return store.get("state_dir") if isinstance(store, dict) else None


def load_config_file(path: Path) -> ServeFile:
    """Read the file and check all of it.

    Raises:
        ConfigError: It cannot be read, is not YAML, is not a Serve config file, does not hold this
            platform, or its settings are not valid.
    """
    schema = _check_serve_schema(_read_mapping(path), path)
    app = _find_application(schema, path)
    try:
        settings = parse_settings(app.args)
        check_exposure(schema.http_options.host, settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    options = schema.http_options
    return ServeFile(path, options.host, options.port, app.name, settings)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML where a key may stand only once in a mapping, and where a date is a text.

    The standard loader keeps the last of two keys, and makes dates of texts that no setting takes.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own form
        first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:timestamp"]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first_line: dict[object, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, Hashable) and key in first_line:
                raise ConfigError(
                    f"line {line}: the key {key!r} stands a second time, first on line "
                    f"{first_line[key]}; remove one"
                )
            if isinstance(key, Hashable):
                first_line[key] = line
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text("utf-8"), _UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text in UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}: line {line}: is not YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping with a list of applications.")
    return content


def _check_serve_schema(content: dict[str, Any], path: Path) -> "ServeDeploySchema":
    """Let Ray check its part, so that what passes here is not refused by `serve deploy`."""
    from ray.serve.schema import ServeDeploySchema  # imports Ray: a second

    problems = list(find_unknown_keys(content, ServeDeploySchema))
    try:
        schema = ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        problems += describe_invalid(error, ServeDeploySchema)
    if problems:
        raise ConfigError(list_problems(f"{path}: is not a Ray Serve config file", problems))
    return schema


def _find_application(schema: "ServeDeploySchema", path: Path) -> "ServeApplicationSchema":
    apps = [app for app in schema.applications if app.import_path == IMPORT_PATH]
    if len(apps) == 1:
        return apps[0]
    found = ", ".join(repr(app.import_path) for app in schema.applications) or "none"
    raise ConfigError(
        f"{path}: must have exactly one application with import_path: {IMPORT_PATH}; it has "
        f"{len(apps)} (import paths in the file: {found})."
    )
