"""A model as its entry in the config file says it: what of it makes its engines.

Entries stay as they were written, so that what is deployed is what somebody once deployed.
"""

import copy
from collections.abc import Mapping
from typing import Any

NOT_THE_ENGINES = frozenset(
    {
        *("replicas", "autoscaling", "rollout", "canary", "front_end", "aliases", "cost_factor"),
        "ttft_objective_s",
    }
)
"""Settings of a model that its running engines need not know."""
_KEPT = NOT_THE_ENGINES - {"front_end"}
"""What stays as it is when a model's engines go back: a front end fits its engines."""

Entry = Mapping[str, Any]


def find_entry(args: Mapping[str, Any], model: str) -> Entry | None:
    """Returns a model's entry; None where there is none, as for a canary."""
    entries = args.get("models") or ()
    return next((e for e in entries if isinstance(e, Mapping) and e.get("name") == model), None)


def makes_same_engines(one: Entry, other: Entry) -> bool:
    """Whether two entries of a model differ in nothing that their engines see."""
    return _engines_of(one) == _engines_of(other)


def go_back(args: Mapping[str, Any], model: str, before: Entry) -> dict[str, Any]:
    """Returns `args` with a model's engines as they were before, and all else as it is."""
    return _replace(args, model, lambda entry: {**_kept_of(entry), **_engines_of(before)})


def try_again(args: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Returns `args` with the same engines, as an attempt of its own."""

    def count(entry: Entry) -> dict[str, Any]:
        rollout = dict(entry.get("rollout") or {})
        return {**entry, "rollout": rollout | {"attempt": rollout.get("attempt", 0) + 1}}

    return _replace(args, model, count)


def _replace(args: Mapping[str, Any], model: str, change: Any) -> dict[str, Any]:
    entries = [change(e) if e.get("name") == model else e for e in args["models"]]
    return copy.deepcopy({**args, "models": entries})


def _engines_of(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _KEPT}


def _kept_of(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in _KEPT}
