"""Any server with OpenAI's API, OpenAI's own included."""

from typing import Any

from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Language
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.observation import Distribution, Observation, TokenIds
from whence_server.engines.upstream.adapter import Call, Found
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.grades import grade_request
from whence_server.engines.upstream.openai_form.answers import OpenAIAnswer
from whence_server.engines.upstream.openai_form.models import choose_model, list_models
from whence_server.engines.upstream.openai_form.requests import (
    make_chat_fields,
    make_decoding_fields,
    make_response_format,
)
from whence_server.engines.upstream.openai_form.text_tokens import TextTokens
from whence_server.engines.upstream.profile import Profile, Shown
from whence_server.engines.upstream.progress import Progress
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.documents import get_count, get_text
from whence_server.engines.upstream.wire.events import ServerSentEvents

_OWN_HOSTS = (".openai.com", ".openai.azure.com")
"""Hosts whose newer models refuse `max_tokens`; elsewhere, many servers know nothing else."""
_MAX_COMPLETION_LOGPROBS = 5
"""Most candidates on the completions route, by OpenAI's reference."""

PROFILE = Profile(
    kind="openai",
    title="an OpenAI-compatible server",
    options={
        "max_new_tokens": "max_tokens",
        "stop": "stop",
        "num_return_sequences": "n",
        "logit_bias": "logit_bias",
        "temperature": "temperature",
        "top_p": "top_p",
        "seed": "seed",
    },
    shown=Shown(
        ids="no",
        prompt="nothing",
        logprobs="from some servers; whence finds at start of which distribution they are",
        candidates="texts and bytes",
        finish="length; end of sequence and stop string look alike",
    ),
    distribution=None,
    max_candidates=20,
    max_seed=2**63 - 1,
    max_logit_bias=100.0,
    constraints=frozenset({Language.JSON_SCHEMA}),
    reserved=frozenset({"echo", "best_of", "max_completion_tokens"}),
)


class OpenAIAdapter:
    """Adapter of a server of which only the API is known."""

    profile = PROFILE
    health_route = "/v1/models"

    def __init__(self) -> None:
        self._max_tokens_field = PROFILE.options["max_new_tokens"]

    async def describe(self, connection: Connection, model: str) -> UpstreamDescription:
        """Ask for the served models.

        Raises:
            UpstreamError: it does not answer.
        """
        host = connection.address.root.host or ""
        if f".{host}".endswith(_OWN_HOSTS):
            self._max_tokens_field = "max_completion_tokens"
        served = choose_model(await list_models(connection), model, connection.name)
        return UpstreamDescription(
            kind=PROFILE.kind,
            version="",
            model=get_text(served, "id", ""),
            # Some servers say it under this name, which OpenAI's own API does not have.
            max_context_length=get_count(served, "max_model_len", ""),
            max_candidates=PROFILE.max_candidates,
            takes_token_ids=False,
            max_seed=PROFILE.max_seed,
            max_text_candidates=_MAX_COMPLETION_LOGPROBS,
        )

    async def ask_process(self, connection: Connection) -> str:
        """Return "": the server tells nothing of its process."""
        del connection
        return ""

    def make_call(self, request: UpstreamRequest, found: Found) -> Call:
        """Return a request for a chat or a completion."""
        fields = make_decoding_fields(PROFILE.options, request.decoding)
        if "max_tokens" in fields:
            fields[self._max_tokens_field] = fields.pop("max_tokens")
        fields |= make_response_format(request.decoding.constraint)
        fields |= {
            "model": found.description.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asks_logprobs = _asks_logprobs(request, found)
        if isinstance(request.prompt, ChatInput):
            fields |= make_chat_fields(request.prompt)
            if asks_logprobs:
                fields |= {"logprobs": True, "top_logprobs": request.num_candidates}
            return _make_call("/v1/chat/completions", request, fields)
        fields["prompt"] = request.prompt
        if asks_logprobs:
            fields["logprobs"] = _count_for_completion(request)
        return _make_call("/v1/completions", request, fields)

    def make_answer(self, request: UpstreamRequest, found: Found, name: str) -> OpenAIAnswer:
        """Return the reader of an answer."""
        progress = Progress(request, name, found.description.model, is_model_exact=False)
        is_chat = isinstance(request.prompt, ChatInput)
        num_wanted = request.num_candidates if _asks_logprobs(request, found) else None
        tokens = TextTokens(num_wanted)
        read = tokens.read_chat if is_chat else tokens.read_completion
        return OpenAIAnswer(request, progress, read, name)

    def grade(self, request: UpstreamRequest, found: Found) -> Observation:
        """Return the grades of a generation."""
        # Nothing is known of how the server applies a constraint.
        is_masked = request.decoding.constraint is not None or bool(request.passed_on)
        return grade_request(request, found, TokenIds.NONE, is_masked=is_masked)

    async def ask_prompt(
        self, connection: Connection, request: UpstreamRequest
    ) -> UpstreamPrompt | None:
        """Return None: the API has no route for it."""
        del connection, request
        return None


def _make_call(route: str, request: UpstreamRequest, fields: dict[str, Any]) -> Call:
    return Call(route, {**request.passed_on, **fields}, ServerSentEvents)


def _asks_logprobs(request: UpstreamRequest, found: Found) -> bool:
    return request.num_candidates is not None and found.distribution is not Distribution.NONE


def _count_for_completion(request: UpstreamRequest) -> int:
    """Return the number of candidates to ask for on the completions route.

    Raises:
        InvalidRequestError: the route gives fewer.
    """
    num_candidates = request.num_candidates or 0
    if num_candidates > _MAX_COMPLETION_LOGPROBS:
        raise InvalidRequestError(
            FieldViolation(
                "trace.num_candidates",
                f"must be at most {_MAX_COMPLETION_LOGPROBS} for a text completion of the upstream "
                f"({PROFILE.title}), not {num_candidates}; a chat has up to "
                f"{PROFILE.max_candidates}",
            )
        )
    return num_candidates
