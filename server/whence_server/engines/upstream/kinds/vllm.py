"""vLLM's OpenAI-compatible server."""

from typing import Any

from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.errors import UpstreamRefusedError
from whence_server.domain.observation import Distribution, Observation, TokenIds
from whence_server.engines.upstream.adapter import Call, Found
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.grades import grade_request
from whence_server.engines.upstream.kinds.vllm_tokens import VllmTokens
from whence_server.engines.upstream.openai_form.answers import OpenAIAnswer
from whence_server.engines.upstream.openai_form.models import choose_model, list_models
from whence_server.engines.upstream.openai_form.requests import (
    make_chat_fields,
    make_decoding_fields,
    parse_schema,
)
from whence_server.engines.upstream.profile import Profile, Shown
from whence_server.engines.upstream.progress import Progress
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.documents import get_count, get_text
from whence_server.engines.upstream.wire.events import ServerSentEvents

_MAX_LOGPROBS = 20
"""Default of --max-logprobs."""
_START_TIME = "process_start_time_seconds "
"""Metric that is another one after a restart, even with the same model and version."""
_MASKING = frozenset({"structured_outputs", "response_format", "allowed_token_ids"})
_NOT_MASKING = ("auto", "none", None)
"""Values of `tool_choice` that leave the text free."""

PROFILE = Profile(
    kind="vllm",
    title="vLLM",
    options={
        "max_new_tokens": "max_tokens",
        "min_new_tokens": "min_tokens",
        "stop": "stop",
        "stop_token_ids": "stop_token_ids",
        "ignore_eos": "ignore_eos",
        "num_return_sequences": "n",
        "add_special_tokens": "add_special_tokens",
        "repetition_penalty": "repetition_penalty",
        "logit_bias": "logit_bias",
        "bad_words": "bad_words",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "seed": "seed",
    },
    shown=Shown(
        ids="yes",
        prompt="ids; of a chat the text too",
        logprobs="yes; `--logprobs-mode` decides the distribution, and whence finds it at start",
        candidates="ids; texts only if whence has `--tokenizer`",
        finish="end of sequence, stop string or stop token by name, length",
    ),
    distribution=None,
    max_candidates=_MAX_LOGPROBS,
    max_seed=2**63 - 1,
    takes_token_ids=True,
    takes_template_arguments=True,
    constraints=frozenset({Language.JSON_SCHEMA, Language.REGEX}),
    no_forced=(
        "tokens are forced by SamplingParams.trace_decode_token_ids alone, in vLLM's own process "
        "and with --enable-trace-replay; its routes for chats and completions do not take it, and "
        "tell the logprobs of a prompt (prompt_logprobs) in no stream"
    ),
    min_temperature=0.01,
    max_logit_bias=100.0,
    reserved=frozenset(
        {
            "echo",
            "prompt_logprobs",
            "logprob_token_ids",
            "include_reasoning",
            "include_stop_str_in_output",
            "prompt_embeds",
            "use_beam_search",
        }
    ),
)


class VllmAdapter:
    """Adapter of vLLM."""

    profile = PROFILE
    health_route = "/health"

    async def describe(self, connection: Connection, model: str) -> UpstreamDescription:
        """Ask for the version and for the served models.

        Raises:
            UpstreamError: it does not answer as vLLM.
        """
        version = await connection.get_object("/version")
        served = choose_model(await list_models(connection), model, connection.name)
        return UpstreamDescription(
            kind=PROFILE.kind,
            version=get_text(version, "version", ""),
            model=get_text(served, "id", ""),
            max_context_length=get_count(served, "max_model_len", ""),
            max_candidates=PROFILE.max_candidates,
            takes_token_ids=True,
            claimed_files=get_text(served, "root", ""),
            processor_order=("temperature", "min_p", "top_k", "top_p"),
            max_seed=PROFILE.max_seed,
        )

    async def ask_process(self, connection: Connection) -> str:
        """Ask the metrics for the time at which the process was started; "" if they lack it."""
        try:
            metrics = await connection.get_text("/metrics")
        except UpstreamRefusedError:
            return ""
        starts = (line for line in metrics.splitlines() if line.startswith(_START_TIME))
        return next(starts, "").removeprefix(_START_TIME)

    def make_call(self, request: UpstreamRequest, found: Found) -> Call:
        """Return a request for chat or completions."""
        decoding = request.decoding
        fields = make_decoding_fields(PROFILE.options, decoding)
        if decoding.constraint is not None:
            fields["structured_outputs"] = _make_constraint(decoding.constraint)
        fields |= {
            "model": found.description.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        is_chat = isinstance(request.prompt, ChatInput)
        num_asked = _count_asked(request, found, is_chat=is_chat)
        if isinstance(request.prompt, ChatInput):
            # The template adds the special tokens.
            fields.pop("add_special_tokens")
            fields |= make_chat_fields(request.prompt) | {"return_prompt_text": True}
            if num_asked is not None:
                fields |= {"logprobs": True, "top_logprobs": num_asked}
        else:
            prompt = request.prompt
            fields["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
            if num_asked is not None:
                fields["logprobs"] = num_asked
        if num_asked is not None:
            fields["return_tokens_as_token_ids"] = True
        route = "/v1/chat/completions" if is_chat else "/v1/completions"
        return Call(route, {**request.passed_on, **fields}, ServerSentEvents)

    def make_answer(self, request: UpstreamRequest, found: Found, name: str) -> OpenAIAnswer:
        """Return the reader of an answer."""
        is_chat = isinstance(request.prompt, ChatInput)
        reader = VllmTokens(request, _count_asked(request, found, is_chat=is_chat))
        progress = Progress(request, name, found.description.model)
        read = reader.read_chat if is_chat else reader.read_completion
        return OpenAIAnswer(request, progress, read, name)

    def grade(self, request: UpstreamRequest, found: Found) -> Observation:
        """Return the grades of a generation."""
        return grade_request(request, found, TokenIds.SAMPLED, is_masked=_is_masked(request))

    async def ask_prompt(
        self, connection: Connection, request: UpstreamRequest
    ) -> UpstreamPrompt | None:
        """Return None: the answer itself has the prompt's ids."""
        del connection, request
        return None


def _make_constraint(constraint: Constraint) -> dict[str, Any]:
    if constraint.language is Language.REGEX:
        return {"regex": constraint.text}
    return {"json": parse_schema(constraint)}


def _is_masked(request: UpstreamRequest) -> bool:
    """Return whether a constraint removes tokens before vLLM computes its raw logprobs."""
    if request.decoding.constraint is not None:
        return True
    asked = request.passed_on
    return not _MASKING.isdisjoint(asked) or asked.get("tool_choice", "auto") not in _NOT_MASKING


def _count_asked(request: UpstreamRequest, found: Found, *, is_chat: bool) -> int | None:
    """Return the number of candidates to ask for; None for no logprobs.

    The chat route cuts the chosen token and the most likely ones to the number, so that it is asked
    for one more.
    """
    if request.num_candidates is None or found.distribution is Distribution.NONE:
        return None
    more = 1 if is_chat and request.num_candidates else 0
    return min(request.num_candidates + more, max(found.description.max_candidates, 0))
