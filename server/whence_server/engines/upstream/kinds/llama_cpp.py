"""llama.cpp's server: its own /completion for texts and token ids, OpenAI's form for chats."""

from typing import Any

from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Language
from whence_server.domain.decoding import Decoding
from whence_server.domain.observation import Distribution, Observation, Tables, TokenIds
from whence_server.engines.upstream.adapter import Answer, Call, Found
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.grades import grade_request
from whence_server.engines.upstream.kinds.llama_cpp_answers import (
    ChatAnswer,
    CompletionAnswer,
    ShownTokens,
)
from whence_server.engines.upstream.openai_form.models import choose_model, list_models
from whence_server.engines.upstream.openai_form.requests import (
    make_chat_fields,
    make_decoding_fields,
    parse_schema,
)
from whence_server.engines.upstream.profile import Profile, Shown
from whence_server.engines.upstream.progress import Progress
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.documents import (
    get_count,
    get_object,
    get_text,
    get_token_ids,
)
from whence_server.engines.upstream.wire.events import ServerSentEvents

_WHOLE_CONTEXT = -1
"""Length of the server's own context, where it does not tell that; 0 would switch penalties off."""
_SAMPLERS = (
    "penalties",
    "dry",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typ_p",
    "top_n_sigma",
    "xtc",
)
"""Order of application, which is transformers': temperature before the samplers that cut.

The server's own order has temperature last, so that top_p would mean something else.
"""

PROFILE = Profile(
    kind="llama.cpp",
    title="llama.cpp",
    options={
        "max_new_tokens": "n_predict",
        "stop": "stop",
        "ignore_eos": "ignore_eos",
        "num_return_sequences": "n",
        "repetition_penalty": "repeat_penalty",
        "logit_bias": "logit_bias",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "typical_p": "typical_p",
        "seed": "seed",
    },
    shown=Shown(
        ids="yes",
        prompt="ids; of a chat the text too",
        logprobs="yes, raw",
        candidates="ids, texts and bytes; none for a draft model's tokens, and none in a chat with "
        "tools",
        finish="end of sequence, stop string by name, length; in a chat the first two look alike",
    ),
    distribution=Distribution.RAW,
    max_candidates=128,
    max_seed=2**31 - 1,
    takes_token_ids=True,
    takes_template_arguments=True,
    constraints=frozenset({Language.JSON_SCHEMA}),
    reserved=frozenset(
        {"echo", "n_probs", "post_sampling_probs", "response_fields", "return_progress", "samplers"}
    ),
    neutral_fields={
        "dynatemp_range": 0.0,
        "xtc_probability": 0.0,
        "top_n_sigma": -1.0,
        "dry_multiplier": 0.0,
        "mirostat": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "adaptive_target": -1.0,
        "min_keep": 0,
        "n_indent": 0,
        "t_max_predict_ms": -1,
    },
)


class LlamaCppAdapter:
    """Adapter of llama.cpp's server."""

    profile = PROFILE
    health_route = "/health"

    async def describe(self, connection: Connection, model: str) -> UpstreamDescription:
        """Ask for the properties and the served model.

        Raises:
            UpstreamError: it does not answer as llama.cpp.
        """
        props = await connection.get_object("/props")
        served = choose_model(await list_models(connection), model, connection.name)
        settings = get_object(props, "default_generation_settings", "")
        return UpstreamDescription(
            kind=PROFILE.kind,
            version=get_text(props, "build_info", ""),
            model=get_text(served, "id", ""),
            max_context_length=get_count(settings, "n_ctx", "default_generation_settings."),
            max_candidates=PROFILE.max_candidates,
            takes_token_ids=True,
            claimed_files=get_text(props, "model_path", ""),
            vocabulary_size=get_count(get_object(served, "meta", ""), "n_vocab", "meta."),
            processor_order=tuple(name for name in _SAMPLERS if name in PROFILE.options),
            max_seed=PROFILE.max_seed,
        )

    async def ask_process(self, connection: Connection) -> str:
        """Return "": the server tells nothing of its process."""
        del connection
        return ""

    def make_call(self, request: UpstreamRequest, found: Found) -> Call:
        """Return a request for a chat or a completion."""
        fields = _make_fields(request.decoding, found)
        if isinstance(request.prompt, ChatInput):
            route = "/v1/chat/completions"
            fields |= make_chat_fields(request.prompt) | {
                "stream_options": {"include_usage": True},
                # With each token comes the number of tokens, which shows those that are held back.
                "timings_per_token": True,
            }
            if not _has_tools(request):
                # Without logprobs, a chat would not show the ids either.
                fields |= {"logprobs": True, "top_logprobs": max(request.num_candidates or 0, 1)}
        else:
            route = "/completion"
            prompt = request.prompt
            fields |= {
                "prompt": prompt if isinstance(prompt, str) else list(prompt),
                "return_tokens": True,
                "n_probs": 0 if request.num_candidates is None else max(request.num_candidates, 1),
            }
        body = {**PROFILE.neutral_fields, **request.passed_on, **fields}
        return Call(route, body, ServerSentEvents)

    def make_answer(self, request: UpstreamRequest, found: Found, name: str) -> Answer:
        """Return the reader of an answer."""
        progress = Progress(request, name, found.description.model)
        tokens = ShownTokens(request.num_candidates, are_shown=not _has_tools(request))
        if isinstance(request.prompt, ChatInput):
            return ChatAnswer(request, progress, tokens, name)
        return CompletionAnswer(progress, tokens, name)

    def grade(self, request: UpstreamRequest, found: Found) -> Observation:
        """Return the grades of a generation."""
        has_tools = _has_tools(request)
        return grade_request(
            request,
            found,
            TokenIds.NONE if has_tools else TokenIds.SAMPLED,
            has_logprobs=request.num_candidates is not None and not has_tools,
            # The first tokens of a character that several tokens make are not shown, and drafted
            # tokens have no table.
            tables=Tables.SOME_STEPS,
        )

    async def ask_prompt(
        self, connection: Connection, request: UpstreamRequest
    ) -> UpstreamPrompt | None:
        """Ask for the text that the template makes, and for the prompt's ids.

        Raises:
            UpstreamError: it does not answer.
        """
        prompt = request.prompt
        if isinstance(prompt, tuple):
            return None
        text = None
        if isinstance(prompt, ChatInput):
            body = {**request.passed_on, **make_chat_fields(prompt)}
            applied = await connection.post_object("/apply-template", body)
            text = get_text(applied, "prompt", "")
        content = {
            "content": prompt if text is None else text,
            "add_special": True,
            "parse_special": True,
        }
        tokenized = await connection.post_object("/tokenize", content)
        return UpstreamPrompt(text, get_token_ids(tokenized, "tokens", ""))


def _has_tools(request: UpstreamRequest) -> bool:
    """Return whether the request is a chat with tools, of which the server streams only text."""
    return isinstance(request.prompt, ChatInput) and bool(request.prompt.tools_json)


def _make_fields(decoding: Decoding, found: Found) -> dict[str, Any]:
    fields = make_decoding_fields(PROFILE.options, decoding)
    if decoding.constraint is not None:
        fields["json_schema"] = parse_schema(decoding.constraint)
    return fields | {
        "model": found.description.model,
        "stream": True,
        "samplers": list(_SAMPLERS),
        # The penalty looks back at the whole context, as transformers' does.
        "repeat_last_n": found.description.max_context_length or _WHOLE_CONTEXT,
        "post_sampling_probs": False,
    }
