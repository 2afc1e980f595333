"""Options of `generate`, for the synchronous and the asynchronous client."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal, NamedTuple, Required, TypeAlias, TypedDict, get_type_hints
from uuid import UUID

Prompt: TypeAlias = str | Sequence[int]
"""Text, or token ids that are used as they are."""


class Option(NamedTuple):
    """Place of an option in the contract, and the flag that `whence generate` makes of it.

    Attributes:
        path: the field, from `GenerateRequest`.
        kind: how the value is carried. "strategy" is a message that may be empty.
        flag: type of the flag's value, int, float or list (of token ids); None where the command
            has no flag, or one of another form.
        meaning: the flag's help.
    """

    path: str
    kind: Literal[
        "scalar",
        "text",
        "choice",
        "texts",
        "token_ids",
        "biases",
        "strategy",
        "continuation",
        "json_schema",
    ] = "scalar"
    flag: type | None = None
    meaning: str = ""


class TextPart(TypedDict):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(TypedDict):
    """Name and arguments of a tool call."""

    name: str
    arguments: str | Mapping[str, object]
    """The text of a JSON object, or the object."""


class ToolCallDict(TypedDict, total=False):
    """A tool call in a message, in OpenAI's form."""

    id: str
    type: Literal["function"]
    function: Required[FunctionCall]


class ChatMessage(TypedDict, total=False):
    """One turn of a conversation, in OpenAI's form; None is the same as leaving a key out."""

    role: Required[str]
    content: str | Sequence[TextPart] | None
    """Text, or parts of text; a message with tool calls needs none."""
    tool_calls: Sequence[ToolCallDict] | None
    """Tools that an assistant called."""
    tool_call_id: str | None
    """Id of the call that a message of the role "tool" answers."""
    name: str | None
    """Name of the author, or of the tool."""
    reasoning_content: str | None
    """Reasoning that an assistant wrote before its answer; also as "reasoning" or "thinking"."""


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate`; None is the same as leaving an option out.

    Defaults are those of the model's generation config. At most one strategy may be chosen:
    greedy, sampling, beam search or forced; any option of a strategy chooses it.
    """

    messages: Sequence[ChatMessage] | None
    """A conversation for the model's chat template, instead of a prompt."""
    tools: Sequence[Mapping[str, object]] | None
    """Definitions of the tools that the model may call, as its template expects them."""
    continue_final_message: bool | str | None
    """True continues the last message instead of beginning a new one; a name continues that field,
    such as "reasoning_content"."""
    template_arguments: Mapping[str, object] | None
    """Variables for the chat template, such as `enable_thinking`; values as in JSON, in their
    order."""
    template_name: str | None
    """Name of one of the model's chat templates (`Model.chat_templates`)."""
    model: str | None
    adapter: str | None
    """Name of one of the model's adapters (`Model.adapters`), to generate with its layers."""
    upstream_parameters: Mapping[str, object] | None
    """Fields of an upstream's own API, which receives them unchanged; values as in JSON."""
    add_special_tokens: Annotated[bool | None, Option("decoding.add_special_tokens")]
    """True adds the tokenizer's special tokens to a text prompt."""

    greedy: Annotated[bool | None, Option("decoding.greedy", "strategy")]
    """Always take the most likely token."""
    sample: Annotated[bool | None, Option("decoding.sample", "strategy")]
    """Sample; implied by any of the next eight."""
    temperature: Annotated[
        float | None,
        Option("decoding.sample.temperature", flag=float, meaning="sample, logits divided by this"),
    ]
    top_k: Annotated[
        int | None,
        Option(
            "decoding.sample.top_k", flag=int, meaning="sample from this many most likely tokens"
        ),
    ]
    top_p: Annotated[
        float | None,
        Option(
            "decoding.sample.top_p",
            flag=float,
            meaning="sample from the most likely tokens of this total probability",
        ),
    ]
    min_p: Annotated[
        float | None,
        Option(
            "decoding.sample.min_p",
            flag=float,
            meaning="sample tokens of at least this share of the likeliest one's probability",
        ),
    ]
    typical_p: Annotated[
        float | None,
        Option(
            "decoding.sample.typical_p",
            flag=float,
            meaning="sample from the locally typical tokens of this total probability",
        ),
    ]
    epsilon_cutoff: Annotated[
        float | None,
        Option(
            "decoding.sample.epsilon_cutoff",
            flag=float,
            meaning="sample tokens of at least this probability",
        ),
    ]
    eta_cutoff: Annotated[
        float | None,
        Option(
            "decoding.sample.eta_cutoff",
            flag=float,
            meaning="as --epsilon-cutoff, lowered where the entropy is high",
        ),
    ]
    seed: Annotated[
        int | None,
        Option(
            "decoding.sample.seed",
            flag=int,
            meaning="sample with this seed: the same draws again",
        ),
    ]
    """64 bits, unsigned. Left out, the server picks one: see `started.effective_decoding`."""
    num_beams: Annotated[
        int | None,
        Option(
            "decoding.beam_search.num_beams", flag=int, meaning="beam search with this many beams"
        ),
    ]
    """Beam search; implied by the next two as well."""
    length_penalty: Annotated[
        float | None,
        Option(
            "decoding.beam_search.length_penalty",
            flag=float,
            meaning="beam search: exponent of the length in a beam's score",
        ),
    ]
    early_stopping: Annotated[
        Literal["when_enough", "never", "heuristic"] | None,
        Option("decoding.beam_search.early_stopping", "choice"),
    ]
    forced: Annotated[Prompt | None, Option("decoding.forced", "continuation")]
    """Choose nothing: trace this continuation token by token."""

    max_new_tokens: Annotated[
        int | None,
        Option("decoding.max_new_tokens", flag=int, meaning="most tokens to generate"),
    ]
    min_new_tokens: Annotated[
        int | None,
        Option("decoding.min_new_tokens", flag=int, meaning="fewest tokens to generate"),
    ]
    stop: Annotated[str | Sequence[str] | None, Option("decoding.stop", "texts")]
    """Generation ends before any of these; they are not part of the output."""
    stop_token_ids: Annotated[Sequence[int] | None, Option("decoding.stop_token_ids", "token_ids")]
    ignore_eos: Annotated[bool | None, Option("decoding.ignore_eos")]
    n: Annotated[int | None, Option("decoding.num_return_sequences")]
    """Sequences to return: samples, or the best beams."""
    repetition_penalty: Annotated[
        float | None,
        Option(
            "decoding.repetition_penalty",
            flag=float,
            meaning="above 1, makes tokens that occurred already less likely",
        ),
    ]
    no_repeat_ngram_size: Annotated[
        int | None,
        Option(
            "decoding.no_repeat_ngram_size",
            flag=int,
            meaning="n-grams of this size occur once only",
        ),
    ]
    logit_bias: Annotated[Mapping[int, float] | None, Option("decoding.logit_bias", "biases")]
    """Added to the logits of these token ids."""
    bad_words: Annotated[str | Sequence[str] | None, Option("decoding.bad_words", "texts")]
    """Texts that are never completed."""
    json_schema: Annotated[
        Mapping[str, object] | str | type | None,
        Option("decoding.constraint.json_schema", "json_schema"),
    ]
    """JSON Schema of the output: a dict, its text, or a pydantic model. `{}` allows any JSON."""
    regex: Annotated[
        str | None,
        Option(
            "decoding.constraint.regex",
            "text",
            flag=str,
            meaning="regular expression that the output matches as a whole",
        ),
    ]
    grammar: Annotated[str | None, Option("decoding.constraint.grammar.text", "text")]
    """Context-free grammar of the output."""
    grammar_syntax: Annotated[
        Literal["lark", "ebnf"] | None, Option("decoding.constraint.grammar.syntax", "choice")
    ]
    """Syntax of `grammar`: "lark" (the default), or "ebnf" as llama.cpp writes it."""

    detail: Annotated[
        Literal["tokens", "decisions", "internals"] | None, Option("trace.detail", "choice")
    ]
    """Amount traced of each step."""
    num_candidates: Annotated[
        int | None,
        Option("trace.num_candidates", flag=int, meaning="candidates to trace for each token"),
    ]
    """Candidates traced for each step; 0 for none."""
    trace_prompt: Annotated[bool | None, Option("trace.prompt")]
    """Trace the prompt's own tokens as well."""
    logprob_token_ids: Annotated[
        Sequence[int] | None,
        Option(
            "trace.logprob_token_ids",
            "token_ids",
            flag=list,
            meaning="token ids whose log probabilities are traced for each token, candidates or "
            "not; at most 128",
        ),
    ]
    """Token ids whose log probabilities every step has: see `Token.requested_logprobs`."""
    content: Annotated[Literal["full", "tokens", "none"] | None, Option("trace.content", "choice")]
    """Content that the server stores and exports: "tokens" keeps token ids and numbers, "none"
    numbers alone. It can be less than the server's `--journal-content`, and not more. This stream
    is whole all the same."""

    generation_id: str | UUID | None
    """UUID of the generation; by default the client makes one. An equal request with the same id
    joins that generation and gets its events from the first one on."""
    labels: Mapping[str, str] | None
    disconnect_grace_s: float | None
    """Seconds that the generation continues without a reader; default: 60, so that the client
    can resume, even if the server notices first that the connection is lost."""
    max_duration_s: float | None
    """Seconds after which the generation ends with the finish reason "timeout"."""

    timeout_s: float | None
    """Seconds after which reading ends with DeadlineExceededError, over all resumed calls."""
    metadata: Mapping[str, str] | None
    """gRPC metadata of the calls, for example a `traceparent`."""


OPTIONS: dict[str, Option] = {
    name: option
    for name, hint in get_type_hints(GenerateOptions, include_extras=True).items()
    for option in getattr(hint, "__metadata__", ())
}
"""The options that are fields of `GenerateRequest.decoding` and `GenerateRequest.trace`."""


class FilterOptions(TypedDict, total=False):
    """Filter of recorded generations; None and missing options match everything."""

    start_after: datetime | None
    """Time with a time zone; generations must have started later."""
    start_before: datetime | None
    model: str | None
    trace_id: str | None
    labels: Mapping[str, str] | None
    """Labels that a generation must have, with these values."""
    parent: str | UUID | None
    """Id of the generation whose branches match."""
