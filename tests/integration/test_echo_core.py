"""What the echo core alone does: steps that take as long as a model says, and ends at a token."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

from deployments.echo_cache import BlockCache
from deployments.echo_core import EchoCore
from deployments.echo_pace import Pace
from serve_app.messages import Standing
from serve_app.names import TenantId

_EOS = 2
_STANDING = Standing(TenantId("a"), tier=0, counter=0, charged=0)


class Said:
    """An echo core on its thread, and what it said."""

    def __init__(
        self, pace: Pace | None, max_num_seqs: int, cache_tokens: int = 0, chunk: int | None = None
    ) -> None:
        config: Any = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs),
            model_config=SimpleNamespace(hf_config=SimpleNamespace(eos_token_id=_EOS)),
        )
        self._outputs: queue.SimpleQueue[EngineCoreOutput] = queue.SimpleQueue()
        self.core = EchoCore(
            config, self._emit, pace, cache_tokens=cache_tokens, prompt_chunk=chunk
        )
        self.n_tokens: Counter[str] = Counter()
        """Tokens that were read, by request."""
        self.steps: list[list[str]] = []
        """Who spoke, step by step."""

    def _emit(self, client: int, outputs: EngineCoreOutputs) -> None:
        self.steps.append([output.request_id for output in outputs.outputs])
        for output in outputs.outputs:
            self._outputs.put(output)

    def send(
        self, name: str, n_prompt: int, *, standing: Standing = _STANDING, **params: Any
    ) -> None:
        self.core.accept(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=list(range(10, 10 + n_prompt)),
                mm_features=None,
                sampling_params=SamplingParams(ignore_eos=True, **params),
                pooling_params=None,
                arrival_time=0.0,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            ),
            standing,
        )

    def read_ends(self, n: int) -> list[EngineCoreOutput]:
        """The last outputs of so many requests."""
        ends: list[EngineCoreOutput] = []
        while len(ends) < n:
            output = self._read()
            ends += [output] if output.finished else []
        return ends

    def read_first(self, name: str) -> None:
        """Reads up to the first output of a request."""
        while self._read().request_id != name:
            pass

    def _read(self) -> EngineCoreOutput:
        output = self._outputs.get(timeout=20.0)
        self.n_tokens[output.request_id] += len(output.new_token_ids)
        return output

    def read_tokens(self) -> tuple[list[int], EngineCoreOutput]:
        """All tokens of the only request, and its last output."""
        tokens: list[int] = []
        while True:
            output = self._read()
            tokens += output.new_token_ids
            if output.finished:
                return tokens, output


@contextmanager
def running(pace: Pace | None, max_num_seqs: int = 8, **options: Any) -> Iterator[Said]:
    said = Said(pace, max_num_seqs, **options)
    thread = threading.Thread(target=said.core.run, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        said.core.stop()
        thread.join(10.0)


def time_answers(pace: Pace, n: int, n_prompt: int = 4) -> float:
    with running(pace) as said:
        started_s = time.monotonic()
        for i in range(n):
            said.send(str(i), n_prompt, max_tokens=5)
        said.read_ends(n)
        return time.monotonic() - started_s


def test_step_takes_what_its_parts_take() -> None:
    pace = Pace(0.1, per_sequence_s=0.01, per_kv_token_s=0.001, per_prompt_token_s=0.0001)
    assert pace.time_step(3, 50, 100) == 0.1 + 0.03 + 0.05 + 0.01


def test_batch_shares_the_engines_tokens_per_second() -> None:
    pace = Pace(0.0, per_sequence_s=0.01)
    assert time_answers(pace, 1) >= 5 * 0.01
    # Eight run as one after the other would, less a first step before the last ones came.
    assert time_answers(pace, 8) >= 5 * 7 * 0.01


def test_long_prompt_takes_longer_to_its_first_token() -> None:
    pace = Pace(0.001, per_prompt_token_s=0.001)
    assert time_answers(pace, 1, n_prompt=200) >= 0.2


def test_prompt_that_was_there_is_found_in_the_cache() -> None:
    pace = Pace(0.001, per_prompt_token_s=0.001)
    with running(pace, cache_tokens=512) as said:
        took_s, cached = [], []
        for i in range(2):
            started_s = time.monotonic()
            said.send(str(i), 200, max_tokens=1)
            (end,) = said.read_ends(1)
            took_s.append(time.monotonic() - started_s)
            assert end.prefill_stats is not None
            cached.append(end.prefill_stats.num_cached_tokens)
    assert cached == [0, 192]
    assert took_s[0] >= 0.2


def test_prompts_are_computed_in_parts_beside_another_tenant() -> None:
    pace = Pace(0.0, per_prompt_token_s=0.001)
    other = Standing(TenantId("b"), tier=0, counter=0, charged=0)
    with running(pace, chunk=20) as said:
        said.send("a", 4, max_tokens=400)
        said.read_first("a")
        said.send("b", 100, standing=other, max_tokens=1)
        said.read_first("b")
        assert said.n_tokens["a"] >= 5, "it spoke between the parts"
        assert said.n_tokens["b"] == 1


def test_who_took_a_place_has_a_step_of_its_own() -> None:
    pace = Pace(0.01, per_prompt_token_s=0.001)
    newcomer = Standing(TenantId("b"), tier=0, counter=0, charged=0, is_express=True)
    with running(pace, max_num_seqs=4, chunk=20) as said:
        for name in ("a", "a1", "a2"):
            said.send(name, 4, max_tokens=400)
        said.read_first("a2")
        said.send("b", 100, standing=newcomer, max_tokens=1)
        said.read_first("b")
        assert next(step for step in said.steps if "b" in step) == ["b"], "the others wait"
        said.read_first("a")


def test_without_a_cache_nothing_is_said_of_it() -> None:
    with running(Pace(0.001)) as said:
        said.send("a", 200, max_tokens=1)
        (end,) = said.read_ends(1)
    assert end.prefill_stats is None


def test_cache_holds_no_more_than_it_can() -> None:
    cache = BlockCache(64)
    cache.hold(range(100))
    assert cache.match(range(100)) == 64
    cache.hold(range(1000, 1032))
    assert (cache.match(range(1000, 1032)), cache.match(range(100))) == (31, 32)
    assert cache.match(range(100), salt="other") == 0


def test_answer_ends_at_a_stop_token() -> None:
    for pace in (None, Pace(0.001)):
        with running(pace) as said:
            said.send("a", 8, max_tokens=4096, stop_token_ids=[14])
            tokens, last = said.read_tokens()
        assert tokens == [10, 11, 12, 13, 14]
        assert (last.finish_reason, last.stop_reason) == (FinishReason.STOP, 14)


def test_stop_token_is_looked_at_from_min_tokens_on() -> None:
    with running(None) as said:
        said.send("a", 4, max_tokens=20, min_tokens=6, stop_token_ids=[11])
        tokens, last = said.read_tokens()
        assert tokens == [10, 11, 12, 13, 10, 11]
        assert last.finish_reason == FinishReason.STOP
        said.send("b", 4, max_tokens=6, min_tokens=6, stop_token_ids=[13])
        tokens, last = said.read_tokens()
        assert len(tokens) == 6
        assert last.finish_reason == FinishReason.LENGTH


def test_express_request_takes_the_place_of_one_that_goes_on_later() -> None:
    with running(Pace(0.01), max_num_seqs=2) as said:
        said.send("hog0", 4, standing=hog(100), max_tokens=20)
        said.send("hog1", 4, standing=hog(200), max_tokens=20)
        said.read_first("hog1")
        said.send("a", 4, standing=Standing(TenantId("light"), 0, 5, 5, True), max_tokens=3)
        names = [end.request_id for end in said.read_ends(3)]
        assert names == ["a", "hog0", "hog1"], "of who has got most, the youngest yields"
        assert said.n_tokens == {"hog0": 20, "hog1": 20, "a": 3}


def test_waiting_requests_start_by_counters() -> None:
    with running(Pace(0.01), max_num_seqs=1) as said:
        said.send("first", 4, standing=hog(100), max_tokens=10)
        said.read_first("first")
        said.send("hog1", 4, standing=hog(200), max_tokens=2)
        said.send("light0", 4, standing=Standing(TenantId("light"), 0, 5, 5), max_tokens=2)
        said.core.synchronise({TenantId("hog"): 250, TenantId("light"): 6})
        assert [end.request_id for end in said.read_ends(3)] == ["first", "light0", "hog1"]


def hog(counter: int) -> Standing:
    """Of a tenant that has got much."""
    return Standing(TenantId("hog"), tier=0, counter=counter, charged=100)
