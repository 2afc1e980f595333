"""SGLang's server: its own /generate for texts and token ids, OpenAI's form for chats."""

from typing import Any

from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Language
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.observation import Distribution, Observation, Tables, TokenIds
from whence_server.engines.upstream.adapter import Answer, Call, Found
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.grades import grade_request
from whence_server.engines.upstream.kinds.sglang_answers import GenerateAnswer
from whence_server.engines.upstream.kinds.sglang_fields import (
    CHAT,
    GENERATE,
    SAMPLING_PARAMS,
    check_known,
)
from whence_server.engines.upstream.openai_form.answers import OpenAIAnswer
from whence_server.engines.upstream.openai_form.models import choose_model, list_models
from whence_server.engines.upstream.openai_form.requests import (
    make_chat_fields,
    make_decoding_fields,
    make_response_format,
)
from whence_server.engines.upstream.openai_form.text_tokens import TextTokens
from whence_server.engines.upstream.passed_on import divide
from whence_server.engines.upstream.profile import Profile, Shown
from whence_server.engines.upstream.progress import Progress
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.documents import get_count, get_text
from whence_server.engines.upstream.wire.events import ServerSentEvents

PROFILE = Profile(
    kind="sglang",
    title="SGLang",
    options={
        "max_new_tokens": "max_new_tokens",
        "min_new_tokens": "min_new_tokens",
        "stop": "stop",
        "stop_token_ids": "stop_token_ids",
        "ignore_eos": "ignore_eos",
        "num_return_sequences": "n",
        "repetition_penalty": "repetition_penalty",
        "logit_bias": "logit_bias",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "seed": "sampling_seed",
    },
    shown=Shown(
        ids="yes; not in a chat",
        prompt="ids from newer versions; nothing in a chat",
        logprobs="yes; a setting of the server decides the distribution, and whence finds it at "
        "start",
        candidates="ids and texts; in a chat texts and bytes",
        finish="end of sequence, stop string or stop token by name, length",
    ),
    distribution=None,
    max_candidates=20,
    max_seed=2**31 - 1,
    takes_token_ids=True,
    takes_template_arguments=True,
    constraints=frozenset({Language.JSON_SCHEMA, Language.REGEX}),
    reserved=frozenset(
        {
            "return_logprob",
            "logprob_start_len",
            "sampling_params",
            "input_embeds",
            "incremental_streaming_output",
            "no_stop_trim",
        }
    ),
)

_CHAT_OPTIONS = {
    **PROFILE.options,
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "seed": "seed",
}
"""The chat route names some options as OpenAI does."""


class SglangAdapter:
    """Adapter of SGLang."""

    profile = PROFILE
    health_route = "/health"

    async def describe(self, connection: Connection, model: str) -> UpstreamDescription:
        """Ask for the served model.

        Raises:
            UpstreamError: it does not answer as SGLang.
        """
        info = await connection.get_object("/get_model_info")
        server = await connection.get_object("/get_server_info")
        served = choose_model(await list_models(connection), model, connection.name)
        return UpstreamDescription(
            kind=PROFILE.kind,
            version=get_text(server, "version", ""),
            model=get_text(served, "id", ""),
            max_context_length=get_count(served, "max_model_len", ""),
            max_candidates=PROFILE.max_candidates,
            takes_token_ids=True,
            claimed_files=get_text(info, "model_path", ""),
            max_seed=PROFILE.max_seed,
        )

    async def ask_process(self, connection: Connection) -> str:
        """Ask for the random seed, which each start draws anew unless one is set."""
        server = await connection.get_object("/get_server_info")
        return str(server.get("random_seed", ""))

    def make_call(self, request: UpstreamRequest, found: Found) -> Call:
        """Return a request for a chat or a completion."""
        decoding = request.decoding
        has_logprobs = _asks_logprobs(request, found)
        if isinstance(request.prompt, ChatInput):
            fields = _make_sampling(_CHAT_OPTIONS, decoding)
            fields |= make_chat_fields(request.prompt) | make_response_format(decoding.constraint)
            fields |= {
                "model": found.description.model,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            if decoding.constraint and decoding.constraint.language is Language.REGEX:
                fields["regex"] = decoding.constraint.text
            if has_logprobs:
                fields |= {"logprobs": True, "top_logprobs": request.num_candidates}
            known = CHAT | PROFILE.reserved | fields.keys()
            check_known(request.passed_on, known, PROFILE.title)
            return Call("/v1/chat/completions", {**request.passed_on, **fields}, ServerSentEvents)
        given, beside = divide(request.passed_on, SAMPLING_PARAMS)
        sampling = given | _make_sampling(PROFILE.options, decoding)
        if decoding.constraint is not None:
            is_regex = decoding.constraint.language is Language.REGEX
            sampling["regex" if is_regex else "json_schema"] = decoding.constraint.text
        prompt = request.prompt
        fields = {
            **({"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}),
            "sampling_params": sampling,
            "stream": True,
            "return_prompt_token_ids": True,
            # Without logprobs, some versions would not show the ids either.
            "return_logprob": True,
            "top_logprobs_num": request.num_candidates or 0,
            "logprob_start_len": -1,
            "return_text_in_logprobs": True,
        }
        check_known(beside, GENERATE | PROFILE.reserved | fields.keys(), PROFILE.title)
        return Call("/generate", {**beside, **fields}, ServerSentEvents)

    def make_answer(self, request: UpstreamRequest, found: Found, name: str) -> Answer:
        """Return the reader of an answer."""
        progress = Progress(request, name, found.description.model)
        num_wanted = request.num_candidates if _asks_logprobs(request, found) else None
        if isinstance(request.prompt, ChatInput):
            return OpenAIAnswer(request, progress, TextTokens(num_wanted).read_chat, name)
        return GenerateAnswer(request, progress, num_wanted, name)

    def grade(self, request: UpstreamRequest, found: Found) -> Observation:
        """Return the grades of a generation."""
        is_chat = isinstance(request.prompt, ChatInput)
        decoding = request.decoding
        if found.distribution is Distribution.AFTER_TEMPERATURE and _leaves_logits(request):
            # A division by a temperature of 1 changes nothing.
            found = Found(found.description, Distribution.RAW)
        return grade_request(
            request,
            found,
            TokenIds.NONE if is_chat else TokenIds.SAMPLED,
            # A chunk of several tokens may have the table of its first token alone.
            tables=Tables.EVERY_STEP if is_chat else Tables.SOME_STEPS,
            is_masked=decoding.constraint is not None or bool(request.passed_on),
        )

    async def ask_prompt(
        self, connection: Connection, request: UpstreamRequest
    ) -> UpstreamPrompt | None:
        """Return None: the answer itself has the prompt's ids, if anything has."""
        del connection, request
        return None


def _make_sampling(options: dict[str, str] | Any, decoding: Decoding) -> dict[str, Any]:
    fields = make_decoding_fields(options, decoding)
    # -1 is off for SGLang.
    fields["top_k"] = decoding.top_k or -1
    return fields


def _asks_logprobs(request: UpstreamRequest, found: Found) -> bool:
    return request.num_candidates is not None and found.distribution is not Distribution.NONE


def _leaves_logits(request: UpstreamRequest) -> bool:
    """Return whether the logits before temperature are the model's own, and temperature is 1.

    SGLang decodes greedily at temperature 1. It applies biases and penalties before temperature.
    """
    decoding = request.decoding
    is_one = decoding.strategy is Strategy.GREEDY or decoding.temperature == 1.0
    return (
        is_one
        and not decoding.logit_bias
        and decoding.repetition_penalty == 1.0
        and decoding.min_new_tokens == 0
    )
