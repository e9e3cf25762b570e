"""What decides on the number of engines, in the form that `bench.scale_sim` asks for it.

Ray Serve's own policy is its own function, with the delays that Serve puts around it; only its
clock is the simulation's.
"""

from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.config_scaling import ScalingSettings
from serve_app.policy.scaling import Look, Scaler

_LOOK_BACK_S = 30.0
"""Serve's default: it acts on the mean of so long."""


class Fixed:
    """Always the same number."""

    def __init__(self, engines: int) -> None:
        self._engines = engines

    def decide(self, look: Look, n_target: int) -> int:
        """Returns it."""
        return self._engines


class Ours:
    """`serve_app.policy.scaling`, as routers ask it."""

    def __init__(self, settings: ScalingSettings, least: int, most: int) -> None:
        self._scaler = Scaler(settings, least, most, least)

    def decide(self, look: Look, n_target: int) -> int:
        """Returns what is wanted."""
        return self._scaler.decide(look).engines


class ServeRequests:
    """Ray Serve's policy: requests that run or wait, over what each replica is to have of them.

    Args:
        per_engine: `target_ongoing_requests`.
        least: Fewest replicas.
        most: Most replicas.
        up_s: `upscale_delay_s`.
        down_s: `downscale_delay_s`.
    """

    def __init__(
        self,
        per_engine: float,
        least: int,
        most: int,
        up_s: float = 30.0,
        down_s: float = 600.0,
    ) -> None:
        self._config = AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=per_engine,
            upscale_delay_s=up_s,
            downscale_delay_s=down_s,
            look_back_period_s=_LOOK_BACK_S,
        )
        self._policy = autoscaling_policy._apply_autoscaling_config(
            autoscaling_policy.replica_queue_length_autoscaling_policy
        )
        self._state: dict[str, Any] = {}
        self._lately: deque[tuple[float, int]] = deque()

    def decide(self, look: Look, n_target: int) -> int:
        """Returns what Serve would set."""
        self._lately.append((look.now_s, look.n_requests))
        while self._lately[0][0] <= look.now_s - self._config.look_back_period_s:
            self._lately.popleft()
        ongoing = sum(n for _, n in self._lately) / len(self._lately)
        config = self._config
        context = AutoscalingContext(
            deployment_id=DeploymentID("engine", "bench"),
            deployment_name="engine",
            app_name="bench",
            current_num_replicas=look.n_ready,
            target_num_replicas=n_target,
            running_replicas=[],
            total_num_requests=ongoing,
            total_queued_requests=None,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=look.now_s,
            config=config,
        )
        with patch.object(autoscaling_policy, "time", SimpleNamespace(time=lambda: look.now_s)):
            wanted, self._state = self._policy(context)
        return min(max(int(wanted), config.min_replicas), config.max_replicas)
