"""The numbered invariants of cluster/policy/probes.py, and how placement uses them."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.fleet import End, Launched, Node, NodeId, Offer, Refused, ZoneId
from cluster.policy.placement import PlacementSettings, SpotPlacement
from cluster.policy.probes import Probes, ProbeSettings

ZONES = [ZoneId(f"a/r{n}/z") for n in range(5)]
LOOK_S = 30.0
steps = st.lists(st.sets(st.sampled_from(ZONES)), min_size=1, max_size=40)
all_settings = st.builds(
    ProbeSettings, st.floats(60.0, 2000.0), st.floats(0.0, 300.0), st.integers(0, 4)
)


def replayed(
    settings: ProbeSettings, may_ask: list[set[ZoneId]], slow: set[ZoneId]
) -> list[tuple[float, list[Node], list[ZoneId], list[End]]]:
    """Return by look the nodes there were, the zones asked and the ends.

    Nodes of slow zones are confirmed late. There is a node besides, which is none of the probes.
    """
    probes, looks = Probes(settings), []
    nodes = [Node(NodeId("other"), ZONES[0], "spot", -1.0, False)]
    for i, zones in enumerate(may_ask):
        now_s = i * LOOK_S
        nodes = [
            Node(n.id, n.zone, "spot", n.started_s, False, n.zone not in slow or i > 10)
            for n in nodes
        ]
        probed = {node.zone for node in nodes if probes.is_one(node)}
        ends = probes.end(nodes, now_s)
        asked = probes.choose(zones, dict.fromkeys(ZONES, -1e9), probed, now_s)
        looks.append((now_s, nodes, [launch.zone for launch in asked], ends))
        ended = {end.node for end in ends}
        nodes = [node for node in nodes if node.id not in ended]
        nodes += [Node(NodeId(f"{i} {a.zone}"), a.zone, "spot", now_s, False) for a in asked]
    return looks


@given(all_settings, steps, st.sets(st.sampled_from(ZONES)))
def test_probes_are_few(
    settings: ProbeSettings, may_ask: list[set[ZoneId]], slow: set[ZoneId]
) -> None:
    last_s: dict[ZoneId, float] = {}
    for now_s, nodes, asked, _ in replayed(settings, may_ask, slow):
        zones_probed = [node.zone for node in nodes[1:]] + asked
        assert len(zones_probed) == len(set(zones_probed)) <= settings.most
        for zone in asked:
            assert now_s - last_s.get(zone, -1e9) >= settings.every_s
            last_s[zone] = now_s


@given(all_settings, steps, st.sets(st.sampled_from(ZONES)))
def test_probes_are_brief(
    settings: ProbeSettings, may_ask: list[set[ZoneId]], slow: set[ZoneId]
) -> None:
    for now_s, nodes, _, ends in replayed(settings, may_ask, slow):
        ended = {end.node for end in ends}
        for node in nodes[1:]:
            has_stayed = now_s - node.started_s >= settings.stay_s
            assert (node.id in ended) == (node.is_confirmed and has_stayed)


@given(all_settings, steps, st.sets(st.sampled_from(ZONES)))
def test_only_probes_are_ended(
    settings: ProbeSettings, may_ask: list[set[ZoneId]], slow: set[ZoneId]
) -> None:
    for _, _, _, ends in replayed(settings, may_ask, slow):
        assert NodeId("other") not in {end.node for end in ends}


def test_fleet_on_demand_looks_at_a_zone_and_moves_there_when_it_has_been_open_for_long() -> None:
    policy = SpotPlacement(
        PlacementSettings(2, 120.0), [Offer(ZoneId("a/r/x"), "a", "a/r", 1.0, 3.0)]
    )
    nodes, n_probes, now_s, moved_s = list[Node](), 0, 0.0, None
    while moved_s is None and now_s < 86_400.0:
        now_s += 60.0
        nodes = [
            Node(n.id, n.zone, n.market, n.started_s, now_s - n.started_s >= 120.0) for n in nodes
        ]
        plan = policy.plan(nodes, now_s)
        ended = {end.node for end in plan.ends}
        nodes = [node for node in nodes if node.id not in ended]
        for i, launch in enumerate(plan.launches):
            if launch.market == "spot" and now_s < 3600.0:
                policy.observe([Refused(launch.zone, "spot")], now_s)
                continue
            n_probes += launch.reason.startswith("to see")
            policy.observe([Launched(launch.zone, launch.market)], now_s)
            nodes.append(Node(NodeId(f"{now_s} {i}"), launch.zone, launch.market, now_s, False))
        if now_s > 3600.0 and not any(node.market == "on-demand" for node in nodes):
            moved_s = now_s
    assert moved_s is not None
    assert moved_s > 2 * 3600.0
    assert 3 <= n_probes <= moved_s / ProbeSettings().every_s
    assert len(nodes) >= 2
