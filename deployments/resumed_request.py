"""A request that has begun on another engine, in vLLM's own terms.

It is one that was preempted, but by an engine that is gone: its tokens so far are output and not
prompt, so that penalties, `min_tokens`, `max_tokens`, stop tokens and grammars see what they would
have seen, and one prefill computes all of it anew. Three parts of vLLM (0.32) know such a request
only if they saw it begin, and are told here: the scheduler's `Request`, its grammar, and the
worker's batch.

Workers may be processes of their own. vLLM imports `ResumingWorker` into each of them
(`worker_extension_cls`), and what has been produced comes with the sampling parameters.
"""

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

_PRODUCED = "arriero_produced"
"""Of `extra_args`, which the gateway empties: no client can set it."""


def announce_produced(request: EngineCoreRequest, produced: Sequence[int]) -> None:
    """Notes on an engine request what it has produced elsewhere. Before vLLM preprocesses it."""
    params = request.sampling_params
    assert params is not None, "only generations produce tokens"
    params.extra_args = (params.extra_args or {}) | {_PRODUCED: list(produced)}
    # They came with the first token.
    params.prompt_logprobs = None


def restore_output(
    request: Request, produced: Sequence[int], manager: StructuredOutputManager
) -> None:
    """Makes a request that vLLM has preprocessed look as if it had produced these tokens."""
    # These, too, came with the first token; vLLM checks that no more than the prompt was cached.
    request.prefill_stats = None
    if not request.use_structured_output:
        request.append_output_token_ids(list(produced))
        return
    constrained: list[int] = []
    for token in produced:
        request.append_output_token_ids(token)
        constrained += _constrain(request, token, manager)
    _advance_grammar(request, constrained, manager)


def _constrain(request: Request, token: int, manager: StructuredOutputManager) -> list[int]:
    """The token if the grammar has to see it: not while the model reasons.

    As `StructuredOutputManager.accept_tokens`, which needs the grammar compiled.
    """
    bounds = manager._get_constraint_bounds(request, [token], spec_tokens_committed=True)
    if bounds.grammar_start > 1:
        return []
    assert request.structured_output_request is not None
    request.structured_output_request.reasoning_ended = True
    return [token][bounds.grammar_start :]


def _advance_grammar(request: Request, tokens: list[int], manager: StructuredOutputManager) -> None:
    """Puts the grammar where it was, once it is compiled. The scheduler waits for both."""
    structured = request.structured_output_request
    assert structured is not None
    compiled = structured._grammar

    def advance() -> StructuredOutputGrammar:
        grammar = compiled.result() if isinstance(compiled, Future) else compiled
        assert isinstance(grammar, StructuredOutputGrammar)
        if tokens and not grammar.accept_tokens(request.request_id, tokens):
            raise ValueError("the tokens produced so far do not follow the request's grammar")
        return grammar

    # The same executor compiles, first come, first served: it never waits for what is behind it.
    structured.grammar = manager.executor.submit(advance)


class _CpuGenerator(torch.Generator):  # type: ignore[misc]  # torch is not followed
    """A seeded request's source of noise on a CPU, set to the tokens that it has got.

    The sampler draws once for each token. It also draws for each part of a long prompt, and takes
    that back by an offset, which CPU generators do not have: vLLM's engine would die of it.
    """

    request: CachedRequestState

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        self.manual_seed(self.initial_seed())
        for _ in self.request.output_token_ids:
            torch.randint(0, 2**31, (1,), generator=self, dtype=torch.long)


def _restore_generator(request: CachedRequestState, vocab_size: int) -> None:
    """Draws what the sampler has drawn for the tokens produced elsewhere."""
    generator = request.generator
    if generator is None:
        return
    if generator.device.type == "cpu":
        known = _CpuGenerator()
        known.manual_seed(generator.initial_seed())
        known.request = request
        known.set_offset(0)
        request.generator = known
        return
    noise = torch.empty(vocab_size, device=generator.device)
    for _ in request.output_token_ids:
        noise.exponential_(generator=generator)


def _restore_state(request: CachedRequestState, vocab_size: int) -> None:
    """Makes a request that is new to a worker look as if it had run there."""
    params = request.sampling_params
    produced = (params.extra_args or {}).get(_PRODUCED, ()) if params is not None else ()
    if not request.output_token_ids:
        request.output_token_ids.extend(produced)
        _restore_generator(request, vocab_size)


class ResumingWorker:
    """What vLLM mixes into its workers; to import it is what counts."""


_add_request = InputBatch.add_request


def _add_restored_request(self: InputBatch, request: CachedRequestState) -> int:
    # Also comes here after each pause. Then there is output, or none has come yet.
    if not isinstance(request.generator, _CpuGenerator):
        _restore_state(request, self.vocab_size)
    return _add_request(self, request)


InputBatch.add_request = _add_restored_request  # type: ignore[method-assign]  # on purpose
