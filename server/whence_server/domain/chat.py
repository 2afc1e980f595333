"""A conversation as it was requested, and what was read from its output."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, in a conversation or in an output."""

    name: str
    arguments_json: str = ""
    """The arguments as a JSON object, not parsed yet; empty for {}."""
    id: str = ""
    """Id that the tool's answer refers to; empty for none."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; None is an absent field.

    Attributes:
        role: role of the author, as the template names it.
        content: the text, or the texts of its parts.
        tool_calls: tools that an assistant called.
        tool_call_id: id of the call that a tool's message answers.
        name: name of the author, or of the tool.
        reasoning_content: reasoning that an assistant wrote before its answer.
    """

    role: str
    content: str | tuple[str, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A conversation for the model's chat template."""

    messages: tuple[ChatMessage, ...]
    template_arguments_json: str = ""
    """The template's variables as a JSON object, not parsed yet; empty for none."""
    template_name: str = ""
    """Name of one of the model's chat templates; empty for transformers' choice."""
    tools_json: str = ""
    """Definitions of tools as a JSON array, not parsed yet; empty for none."""


@dataclass(frozen=True, slots=True)
class OutputForms:
    """Forms in which a chat's output is read.

    Attributes:
        tool_calls: name of the format of tool calls; "" if calls stay text.
        reasoning: name of the format of reasoning; "" if there is none.
        begins_in_reasoning: True if the prompt ends inside of reasoning.
    """

    tool_calls: str = ""
    reasoning: str = ""
    begins_in_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """The conversation of a generation, as its start records it."""

    input: ChatInput
    template_name: str
    """Name of the template that made the prompt."""
    forms: OutputForms = OutputForms()
    template_digest: str = ""
    """SHA-256 of the template's source, in hex; "" if the server does not know it."""


@dataclass(frozen=True, slots=True)
class ParsedToolCall:
    """A tool call in an output, with the range of the text's UTF-8 bytes, [begin, end)."""

    call: ToolCall
    begin_byte: int
    end_byte: int


@dataclass(frozen=True, slots=True)
class ParsedReasoning:
    """Reasoning in an output, with the range of the text's UTF-8 bytes, [begin, end)."""

    text: str
    begin_byte: int
    end_byte: int
