"""vLLM's OpenAI-compatible server."""

from typing import Any

from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.errors import UpstreamMalformedError
from whence_server.domain.observation import Distribution, Observation, TokenIds
from whence_server.engines.upstream.adapter import Call, Found
from whence_server.engines.upstream.exchange import (
    UpstreamCandidate,
    UpstreamDescription,
    UpstreamPrompt,
    UpstreamRequest,
    UpstreamToken,
)
from whence_server.engines.upstream.grades import grade_request
from whence_server.engines.upstream.openai_form.answers import OpenAIAnswer
from whence_server.engines.upstream.openai_form.models import choose_model, list_models
from whence_server.engines.upstream.openai_form.requests import (
    make_chat_fields,
    make_decoding_fields,
    parse_schema,
)
from whence_server.engines.upstream.profile import Profile, Shown
from whence_server.engines.upstream.progress import Progress
from whence_server.engines.upstream.tables import make_table
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.documents import (
    check_logprob,
    get_count,
    get_list,
    get_object,
    get_objects,
    get_text,
    get_token_ids,
)
from whence_server.engines.upstream.wire.events import ServerSentEvents

FLOOR = -9999.0
"""Logprob that stands for "less than", as JSON has no infinity."""
_MAX_LOGPROBS = 20
"""Default of --max-logprobs."""
_ID_PREFIX = "token_id:"
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
        ids="sampled",
        prompt="ids; a chat's text too",
        logprobs="raw, or as --logprobs-mode sets: found by an experiment at start",
        candidates="ids; texts with --tokenizer",
        finish="end of sequence, stop string or stop token, length",
    ),
    distribution=None,
    max_candidates=_MAX_LOGPROBS,
    max_seed=2**63 - 1,
    takes_token_ids=True,
    takes_template_arguments=True,
    constraints=frozenset({Language.JSON_SCHEMA, Language.REGEX}),
    max_logit_bias=100.0,
    reserved=frozenset(
        {
            "echo",
            "prompt_logprobs",
            "logprob_token_ids",
            "include_reasoning",
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
        reader = _TokenReader(request, _count_asked(request, found, is_chat=is_chat))
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


class _TokenReader:
    """Reader of the tokens of a choice.

    Args:
        request: the generation as it was asked for.
        num_asked: number of candidates that were asked for; None for no logprobs.
    """

    def __init__(self, request: UpstreamRequest, num_asked: int | None) -> None:
        self._num_wanted = request.num_candidates or 0
        self._num_asked = num_asked

    def read_chat(
        self, document: dict[str, Any], choice: dict[str, Any], text: str, path: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a chat's chunk."""
        del document
        token_ids = get_token_ids(choice, "token_ids", path)
        entries = get_objects(get_object(choice, "logprobs", path), "content", f"{path}logprobs.")
        if self._num_asked is None or (not entries and not token_ids):
            return _make_plain_tokens(token_ids or (), text)
        where = f"{path}logprobs.content"
        _check_lengths(token_ids, len(entries), path)
        tokens = []
        for number, entry in enumerate(entries):
            at = f"{where}[{number}]."
            token_id = token_ids[number] if token_ids else _read_id(get_text(entry, "token", at))
            candidates = [
                candidate
                for place, top in enumerate(get_objects(entry, "top_logprobs", at))
                if (
                    candidate := _make_candidate(
                        get_text(top, "token", at),
                        top.get("logprob"),
                        f"{at}top_logprobs[{place}].logprob",
                    )
                )
            ]
            logprob = check_logprob(entry.get("logprob"), f"{at}logprob", FLOOR)
            token_text = text if len(entries) == 1 else ""
            tokens.append(
                self._make_token(token_text, token_id, logprob, candidates, displaces=True)
            )
        return tuple(tokens)

    def read_completion(
        self, document: dict[str, Any], choice: dict[str, Any], text: str, path: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a completion's chunk."""
        del document
        token_ids = get_token_ids(choice, "token_ids", path)
        logprobs = get_object(choice, "logprobs", path)
        path = f"{path}logprobs."
        spelled = get_list(logprobs, "tokens", path)
        if self._num_asked is None or (not spelled and not token_ids):
            return _make_plain_tokens(token_ids or (), text)
        _check_lengths(token_ids, len(spelled), path)
        values = get_list(logprobs, "token_logprobs", path)
        tables = get_list(logprobs, "top_logprobs", path)
        if len(values) != len(spelled) or len(tables) not in {0, len(spelled)}:
            raise UpstreamMalformedError(
                f"the lists in `{path}` of the upstream's answer must have one length; they have "
                f"{len(spelled)}, {len(values)} and {len(tables)} entries"
            )
        tokens = []
        for number, spelling in enumerate(spelled):
            token_id = token_ids[number] if token_ids else _read_id(str(spelling))
            table = tables[number] if tables else None
            candidates = [
                candidate
                for token, value in (table.items() if isinstance(table, dict) else ())
                if (candidate := _make_candidate(token, value, f"{path}top_logprobs[{number}]"))
            ]
            logprob = check_logprob(values[number], f"{path}token_logprobs[{number}]", FLOOR)
            token_text = text if len(spelled) == 1 else ""
            tokens.append(self._make_token(token_text, token_id, logprob, candidates))
        return tuple(tokens)

    def _make_token(
        self,
        text: str,
        token_id: int | None,
        logprob: float | None,
        candidates: list[UpstreamCandidate],
        *,
        displaces: bool = False,
    ) -> UpstreamToken:
        chosen = None if logprob is None else UpstreamCandidate("", logprob, token_id)
        table = make_table(
            candidates, chosen, self._num_wanted, self._num_asked or 0, displaces=displaces
        )
        return UpstreamToken(text, token_id, None, logprob, table.rank, table.candidates)


def _make_candidate(token: str, value: object, path: str) -> UpstreamCandidate | None:
    logprob = check_logprob(value, path, FLOOR)
    if logprob is None:
        return None
    token_id = _read_id(token)
    return UpstreamCandidate("" if token_id is not None else token, logprob, token_id)


def _make_plain_tokens(token_ids: tuple[int, ...], text: str) -> tuple[UpstreamToken, ...]:
    """Return tokens of which only the ids are known."""
    if len(token_ids) == 1:
        return (UpstreamToken(text, token_ids[0]),)
    return tuple(UpstreamToken("", token_id) for token_id in token_ids)


def _read_id(token: str) -> int | None:
    """Return N of "token_id:N"; None for a token by its text."""
    digits = token.removeprefix(_ID_PREFIX)
    if digits != token and digits.isascii() and digits.isdecimal() and len(digits) < 10:
        return int(digits)
    return None


def _check_lengths(token_ids: tuple[int, ...] | None, num_logprobs: int, path: str) -> None:
    if token_ids is not None and len(token_ids) != num_logprobs:
        raise UpstreamMalformedError(
            f"`{path}` of the upstream's answer has {len(token_ids)} token ids and logprobs of "
            f"{num_logprobs} tokens; they must be as many"
        )
