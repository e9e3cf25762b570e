"""Makes the record of a request: what it used, and where its time went."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve_app.usage import Outcome, Texts, UsageRecord

if TYPE_CHECKING:
    from serve_app.gateway.meter import Generation, Meter


def make_record(
    meter: "Meter",
    begun: "Sequence[Generation]",
    outcome: Outcome,
    status: int,
    texts: Texts | None,
) -> UsageRecord:
    """Returns what is to be recorded.

    Args:
        meter: Of the request.
        begun: Its generations of which some engine had anything.
        outcome: How the answer has ended, or ends if nothing more comes.
        status: Its HTTP status; 0 where it never began.
        texts: What was asked and answered, where that is kept.
    """
    timings = meter.read_timings()
    prompt_tokens = sum(g.prompt_tokens for g in begun)
    completion_tokens = sum(g.completion_tokens for g in begun)
    return UsageRecord(
        request_id=meter.row_id,
        client_request_id=meter.request_id,
        tenant_id=meter.caller.tenant_id,
        key_id=meter.key_id,
        model=meter.model,
        adapter=meter.adapter,
        outcome=outcome,
        prompt_tokens=prompt_tokens,
        cached_tokens=min(sum(g.cached_tokens for g in begun), prompt_tokens),
        completion_tokens=completion_tokens,
        cost_usd=meter.price.cost_usd(prompt_tokens, completion_tokens),
        started_s=meter.started_s,
        first_token_s=meter.first_token_s,
        ended_s=time.time(),
        status=status,
        engine=timings.engine_id,
        migrations=timings.moves,
        gateway_s=timings.gateway_s,
        ledger_s=timings.ledger_s,
        queue_s=timings.queue_s,
        router_s=timings.router_s,
        adapter_load_s=timings.adapter_load_s,
        engine_ttft_s=timings.engine_s,
        ttft_s=timings.ttft_s if timings.has_first_token else None,
        total_s=meter.clock.total_s,
        texts=texts,
    )
