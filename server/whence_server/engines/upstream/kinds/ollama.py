"""Ollama's server: one JSON document a line."""

from typing import Any

import orjson

from whence_server.domain.chat import ChatInput, ChatMessage
from whence_server.domain.constraints import Language
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.observation import Distribution, Observation, TokenIds
from whence_server.engines.upstream.adapter import Call, Found
from whence_server.engines.upstream.exchange import (
    UpstreamChunk,
    UpstreamDescription,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.grades import grade_request
from whence_server.engines.upstream.openai_form.models import choose_model
from whence_server.engines.upstream.openai_form.requests import (
    make_decoding_fields,
    parse_arguments,
    parse_schema,
    parse_tools,
)
from whence_server.engines.upstream.openai_form.text_tokens import TextTokens
from whence_server.engines.upstream.passed_on import divide
from whence_server.engines.upstream.profile import Profile, Shown
from whence_server.engines.upstream.progress import Progress, read_finish
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.documents import (
    get_count,
    get_list,
    get_object,
    get_objects,
    get_text,
    parse_object,
)
from whence_server.engines.upstream.wire.events import Event, JsonLines
from whence_server.engines.upstream.wire.refusals import is_error, make_stream_error

PROFILE = Profile(
    kind="ollama",
    title="Ollama",
    options={
        "max_new_tokens": "num_predict",
        "stop": "stop",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "seed": "seed",
    },
    shown=Shown(
        ids="no",
        prompt="nothing",
        logprobs="yes; whence finds at start of which distribution they are",
        candidates="texts and bytes",
        finish="length; end of sequence and stop string look alike",
    ),
    distribution=None,
    max_candidates=20,
    max_seed=2**31 - 1,
    constraints=frozenset({Language.JSON_SCHEMA}),
    reserved=frozenset({"options", "raw", "template", "system", "suffix", "format"}),
    # Ollama has other defaults for them, or a Modelfile can set them.
    neutral_fields={
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "typical_p": 1.0,
        "mirostat": 0,
    },
)

_OPTIONS = frozenset(
    {
        *PROFILE.options.values(),
        *PROFILE.neutral_fields,
        *("repeat_last_n", "mirostat_tau", "mirostat_eta", "penalize_newline", "tfs_z"),
        *("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread"),
        *("use_mmap", "low_vram", "numa"),
    }
)
"""Fields that Ollama reads in `options` alone. It passes over unknown ones without a word."""
_BESIDE_OPTIONS = frozenset({"think", "keep_alive", "images"})
"""Fields that Ollama reads beside `options`, and a caller may set."""


class OllamaAdapter:
    """Adapter of Ollama."""

    profile = PROFILE
    health_route = "/api/version"

    async def describe(self, connection: Connection, model: str) -> UpstreamDescription:
        """Ask for the version and for the models.

        Raises:
            UpstreamError: it does not answer as Ollama.
        """
        version = await connection.get_object("/api/version")
        listed = get_objects(await connection.get_object("/api/tags"), "models", "")
        models = [{"id": get_text(entry, "name", "models[]."), **entry} for entry in listed]
        if model and ":" not in model:
            model = f"{model}:latest"
        served = choose_model(models, model, connection.name)
        name = get_text(served, "id", "")
        digest = get_text(served, "digest", "")
        return UpstreamDescription(
            kind=PROFILE.kind,
            version=get_text(version, "version", ""),
            model=name,
            # It depends on the server's settings and is told only while the model is loaded.
            max_context_length=None,
            max_candidates=PROFILE.max_candidates,
            takes_token_ids=False,
            claimed_files=f"{name}@{digest}" if digest else "",
            max_seed=PROFILE.max_seed,
        )

    async def ask_process(self, connection: Connection) -> str:
        """Return "": the server tells nothing of its process."""
        del connection
        return ""

    def make_call(self, request: UpstreamRequest, found: Found) -> Call:
        """Return a request for a chat or a completion."""
        decoding = request.decoding
        options = make_decoding_fields(PROFILE.options, decoding)
        given, beside = divide(request.passed_on, _OPTIONS)
        _check_known(beside)
        fields: dict[str, Any] = {
            "model": found.description.model,
            "stream": True,
            "options": {**PROFILE.neutral_fields, **given, **options},
            # A prompt that does not fit is an error, and is not cut in silence.
            "truncate": False,
            "shift": False,
        }
        if decoding.constraint is not None:
            fields["format"] = parse_schema(decoding.constraint)
        if request.num_candidates is not None and found.distribution is not Distribution.NONE:
            fields |= {"logprobs": True, "top_logprobs": request.num_candidates}
        if isinstance(request.prompt, ChatInput):
            route = "/api/chat"
            fields["messages"] = [_make_message(message) for message in request.prompt.messages]
            tools = parse_tools(request.prompt.tools_json)
            fields |= {"tools": tools} if tools else {}
        else:
            route = "/api/generate"
            # Raw: the text itself is the prompt, without the model's template.
            fields |= {"prompt": request.prompt, "raw": True}
        return Call(route, {**beside, **fields}, JsonLines)

    def make_answer(self, request: UpstreamRequest, found: Found, name: str) -> "OllamaAnswer":
        """Return the reader of an answer."""
        progress = Progress(request, name, found.description.model)
        has_logprobs = found.distribution is not Distribution.NONE
        tokens = TextTokens(request.num_candidates if has_logprobs else None)
        return OllamaAnswer(request, progress, tokens, name)

    def grade(self, request: UpstreamRequest, found: Found) -> Observation:
        """Return the grades of a generation."""
        is_masked = request.decoding.constraint is not None
        return grade_request(request, found, TokenIds.NONE, is_masked=is_masked)

    async def ask_prompt(
        self, connection: Connection, request: UpstreamRequest
    ) -> UpstreamPrompt | None:
        """Return None: Ollama has no route for it."""
        del connection, request
        return None


class OllamaAnswer:
    """Reader of one answer.

    Args:
        request: the generation as it was asked for.
        progress: its progress.
        tokens: reader of its tokens.
        name: the upstream, for errors.
    """

    def __init__(
        self, request: UpstreamRequest, progress: Progress, tokens: TextTokens, name: str
    ) -> None:
        self._is_chat = isinstance(request.prompt, ChatInput)
        self._has_stops = bool(request.decoding.stop)
        self._has_logprobs = request.num_candidates is not None
        self._progress = progress
        self._tokens = tokens
        self._name = name

    def read(self, event: Event) -> list[UpstreamEvent]:
        """Return the part of the answer that one line has.

        Raises:
            UpstreamError: it is an error, or cannot be read.
        """
        document = parse_object(event.data, "line")
        if is_error(document):
            raise make_stream_error(self._name, document)
        self._progress.check_model(get_text(document, "model", ""))
        message = get_object(document, "message", "") if self._is_chat else document
        path = "message." if self._is_chat else ""
        text = get_text(message, "content" if self._is_chat else "response", path)
        calls = get_list(message, "tool_calls", path)
        entries = get_objects(document, "logprobs", "") if self._has_logprobs else []
        finish, stop = None, ""
        if document.get("done") is True:
            self._progress.finish(0)
            self._progress.note(
                num_prompt_tokens=get_count(document, "prompt_eval_count", ""),
                num_generated_tokens=get_count(document, "eval_count", ""),
            )
            reason = get_text(document, "done_reason", "") or "stop"
            finish, stop = read_finish(reason, has_stops=self._has_stops)
        chunk = UpstreamChunk(
            0,
            text,
            self._tokens.read_entries(entries, "logprobs"),
            finish,
            stop,
            _make_calls_json(calls),
            get_text(message, "thinking", path),
        )
        return [chunk] if chunk != UpstreamChunk(0, "") else []

    def finish(self) -> list[UpstreamEvent]:
        """Return the end of the answer.

        Raises:
            UpstreamUnfinishedError: it has not ended.
        """
        return [self._progress.end()]


def _check_known(beside: dict[str, Any]) -> None:
    """Refuse fields that Ollama would pass over.

    Raises:
        InvalidRequestError: names each field.
    """
    unknown = sorted(beside.keys() - _BESIDE_OPTIONS - PROFILE.reserved)
    if unknown:
        rule = f"is no field that the upstream ({PROFILE.title}) knows; it would have no effect"
        raise InvalidRequestError(*(FieldViolation(name, rule) for name in unknown))


def _make_message(message: ChatMessage) -> dict[str, Any]:
    content = message.content
    fields: dict[str, Any] = {
        "role": message.role,
        "content": "".join(content) if isinstance(content, tuple) else content or "",
    }
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "function": {
                    "name": call.name,
                    "arguments": parse_arguments(call.arguments_json),
                },
            }
            for call in message.tool_calls
        ]
    optional = {
        "tool_call_id": message.tool_call_id,
        "tool_name": message.name,
        "thinking": message.reasoning_content,
    }
    return fields | {key: value for key, value in optional.items() if value is not None}


def _make_calls_json(calls: list[Any]) -> str:
    """Return tool calls in OpenAI's form, in which arguments are a text; "" for none."""
    made = []
    for place, call in enumerate(calls):
        function = get_object(call, "function", "tool_calls[].") if isinstance(call, dict) else {}
        arguments = function.get("arguments")
        made.append(
            {
                "index": get_count(function, "index", "tool_calls[].function.") or place,
                "id": get_text(call, "id", "tool_calls[].") if isinstance(call, dict) else "",
                "type": "function",
                "function": {
                    "name": get_text(function, "name", "tool_calls[].function."),
                    "arguments": orjson.dumps({} if arguments is None else arguments).decode(),
                },
            }
        )
    return orjson.dumps(made).decode() if made else ""
