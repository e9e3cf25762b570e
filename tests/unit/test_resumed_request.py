"""A request that goes on: what vLLM's scheduler, its grammar and its sampler see of it."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from deployments.resumed_request import _restore_state, announce_produced, restore_output

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Words(StructuredOutputGrammar):
    """A grammar that takes every token below 100 and remembers them."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self.taken += tokens
        return all(token < 100 for token in tokens)

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        return tokens

    def rollback(self, num_tokens: int) -> None:
        raise NotImplementedError

    def fill_bitmask(self, bitmask: torch.Tensor, batch_index: int) -> None:
        raise NotImplementedError

    def is_terminated(self) -> bool:
        return False

    def reset(self) -> None:
        raise NotImplementedError


class Thinker:
    """A reasoning parser: token 9 ends the thoughts."""

    def is_reasoning_end(self, ids: list[int]) -> bool:
        return 9 in ids

    def is_reasoning_end_streaming(self, ids: list[int], delta: list[int]) -> bool:
        return 9 in delta


def make_manager(*, thinks: bool = False) -> Any:
    manager: Any = StructuredOutputManager.__new__(StructuredOutputManager)
    manager.enable_in_reasoning = False
    manager.reasoner_cls = (lambda **_: Thinker()) if thinks else None
    manager.tokenizer = None
    manager.executor = ThreadPoolExecutor(1)
    return manager


def make_request(*, has_grammar: bool = False, **params: Any) -> Request:
    if has_grammar:
        params["structured_outputs"] = StructuredOutputsParams(regex="a*")
    return Request("r", [1, 2, 3], SamplingParams(max_tokens=20, **params), None)


def test_produced_tokens_are_output_and_not_prompt() -> None:
    request = make_request()
    restore_output(request, [4, 5], make_manager())
    assert list(request.output_token_ids) == [4, 5]
    assert list(request.all_token_ids) == [1, 2, 3, 4, 5]
    assert request.num_prompt_tokens == 3
    assert request.num_computed_tokens == 0
    assert request.prefill_stats is None


def test_grammar_is_advanced_before_the_scheduler_sees_it() -> None:
    request, grammar = make_request(has_grammar=True), Words()
    compiled: Future[StructuredOutputGrammar] = Future()
    structured = request.structured_output_request
    assert structured is not None
    structured.grammar = compiled
    manager = make_manager()
    restore_output(request, [4, 5, 6], manager)
    assert not structured.is_grammar_ready, "not compiled yet"
    compiled.set_result(grammar)
    manager.executor.shutdown(wait=True)
    assert structured.grammar is grammar
    assert grammar.taken == [4, 5, 6]


def test_grammar_sees_nothing_of_the_models_reasoning() -> None:
    request, grammar = make_request(has_grammar=True), Words()
    structured = request.structured_output_request
    assert structured is not None
    structured.grammar = grammar
    manager = make_manager(thinks=True)
    restore_output(request, [4, 5, 9, 6, 7], manager)
    manager.executor.shutdown(wait=True)
    assert grammar.taken == [6, 7]
    assert structured.reasoning_ended


def test_tokens_against_the_grammar_fail_the_request_and_nothing_else() -> None:
    request = make_request(has_grammar=True)
    structured = request.structured_output_request
    assert structured is not None
    structured.grammar = Words()
    manager = make_manager()
    restore_output(request, [4, 500], manager)
    manager.executor.shutdown(wait=True)
    assert isinstance(structured.grammar, ValueError)


def make_state(produced: list[int], seed: int | None = None) -> CachedRequestState:
    params = SamplingParams(seed=seed, prompt_logprobs=2)
    request: Any = SimpleNamespace(sampling_params=params)
    announce_produced(request, produced)
    assert params.prompt_logprobs is None
    generator = None
    if seed is not None:
        generator = torch.Generator()
        generator.manual_seed(seed)
    return CachedRequestState("r", [1, 2, 3], [], params, generator, ([],), 0, [])


def draw(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long).item())


def test_worker_gets_the_output_and_a_generator_that_has_drawn_for_it() -> None:
    state = make_state([4, 5, 6], seed=7)
    _restore_state(state, 100)
    assert state.output_token_ids == [4, 5, 6]
    assert state.num_tokens == 6
    undisturbed = torch.Generator()
    undisturbed.manual_seed(7)
    expected = [draw(undisturbed) for _ in range(5)]
    assert state.generator is not None
    assert [draw(state.generator) for _ in range(2)] == expected[3:]


def test_draw_for_a_part_of_a_prompt_can_be_taken_back_on_a_cpu() -> None:
    state = make_state([4, 5], seed=7)
    _restore_state(state, 100)
    generator = state.generator
    assert generator is not None
    first = draw(generator)
    generator.set_offset(generator.get_offset() - 4)  # As vLLM does.
    assert draw(generator) == first


def test_request_goes_on_only_once() -> None:
    state = make_state([4, 5])
    _restore_state(state, 100)
    state.output_token_ids += [6]
    _restore_state(state, 100)
    assert state.output_token_ids == [4, 5, 6]


def test_request_can_be_sent_with_what_it_has_produced() -> None:
    params = SamplingParams()
    request = EngineCoreRequest("r", [1], None, params, None, 0.0, None, None, None)
    announce_produced(request, [1, 2])
    assert params.extra_args == {"arriero_produced": [1, 2]}
