"""What `arriero usage` says of a fleet's cost."""

from serve_app.cli_usage import describe_fleet


def test_fleets_cost_is_told_with_what_was_wasted_and_idle_and_who_bears_the_rest() -> None:
    told = describe_fleet(
        {
            "usd": 20.0,
            "spot_usd": 15.0,
            "on_demand_usd": 5.0,
            "all_on_demand_usd": 60.0,
            "wasted_usd": 2.0,
            "idle_usd": 3.0,
            "by_tenant": {f"t{i}": float(i) for i in range(7)},
        }
    )
    assert "cost $20.00: $15.00 on spot, $5.00 on demand" in told
    assert "$2.00 before nodes served or after, $3.00 idle" in told
    assert "t6 $6.00, t5 $5.00" in told
    assert "2 more $1.00" in told
