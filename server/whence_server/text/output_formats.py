"""Formats in which models write tool calls and reasoning, as data.

A format is known by marks in the chat template's source: a template that shows the model how to
call tools, or that writes earlier calls, holds the marks that the model will write. A template that
fits no row has no format, and its model's calls stay text. `output_reading` reads the formats.

Sources: the chat templates of the models named in each row.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallFormat:
    """Form in which a model writes tool calls.

    Without `name_end` a call is JSON: an object with name and arguments, or an array of them. With
    it the name is text, and only the arguments are JSON.

    Attributes:
        name: name of the format, as the record has it.
        shown_by: texts that a template of this format holds, all of them.
        hidden_by: texts that no template of this format holds.
        begin: mark before a call; "" if the output as a whole is a call.
        end: mark after a call; may be missing at the end of the output.
        prefix: mark before an output that is a call as a whole; may be missing.
        separator: mark between calls in an output that is calls as a whole.
        name_keys: members that hold a call's name.
        argument_keys: members that hold a call's arguments.
        id_key: member that holds a call's id; "" if the format has none.
        name_begin: text between `begin` and the name.
        name_end: text after the name, before the arguments.
        id_begin: text between name and id, which may be missing, with the id.
        group_begin: mark before the first call of a group; may be missing.
        group_end: mark after the last call of a group; may be missing.
    """

    name: str
    shown_by: tuple[str, ...]
    hidden_by: tuple[str, ...] = ()
    begin: str = ""
    end: str = ""
    prefix: str = ""
    separator: str = ""
    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments",)
    id_key: str = ""
    name_begin: str = ""
    name_end: str = ""
    id_begin: str = ""
    group_begin: str = ""
    group_end: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Marks around a model's reasoning, which comes before its answer.

    Attributes:
        name: name of the format, as the record has it.
        begin: mark before it, which the template itself may write.
        end: mark after it.
    """

    name: str
    begin: str
    end: str


CALL_FORMATS = (
    # Qwen 2.5 and 3, Hermes, SmolLM 2 (1.7B) and 3, Granite 4.
    CallFormat(
        "hermes",
        shown_by=("<tool_call>", "</tool_call>", "name", "arguments"),
        # Qwen3-Coder and Qwen 3.5, and GLM, write each argument as text between marks.
        hidden_by=("<function=", "<arg_key>"),
        begin="<tool_call>",
        end="</tool_call>",
    ),
    # Llama 3.1, 3.2 and 3.3: the whole output is the call.
    CallFormat(
        "llama",
        shown_by=("dictionary of argument name and its value", '"parameters": '),
        prefix="<|python_tag|>",
        separator=";",
        argument_keys=("parameters", "arguments"),
    ),
    # Mistral Small 3.2 and later, Magistral.
    CallFormat(
        "mistral_named",
        shown_by=("[TOOL_CALLS]", "[ARGS]"),
        begin="[TOOL_CALLS]",
        name_end="[ARGS]",
        id_begin="[CALL_ID]",
    ),
    # Mistral 7B v0.3, Nemo, Mistral Small up to 3.1.
    CallFormat("mistral", shown_by=("[TOOL_CALLS]",), begin="[TOOL_CALLS]", id_key="id"),
    # DeepSeek V3, V3-0324, R1 and R1-0528.
    CallFormat(
        "deepseek_v3",
        shown_by=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```json"),
        begin="<｜tool▁call▁begin｜>",
        end="\n```<｜tool▁call▁end｜>",
        name_begin="function<｜tool▁sep｜>",
        name_end="\n```json\n",
        group_begin="<｜tool▁calls▁begin｜>",
        group_end="<｜tool▁calls▁end｜>",
    ),
    # DeepSeek V3.1.
    CallFormat(
        "deepseek_v3.1",
        shown_by=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        begin="<｜tool▁call▁begin｜>",
        end="<｜tool▁call▁end｜>",
        name_end="<｜tool▁sep｜>",
        group_begin="<｜tool▁calls▁begin｜>",
        group_end="<｜tool▁calls▁end｜>",
    ),
    # Granite 3.
    CallFormat("granite", shown_by=("<|tool_call|>",), begin="<|tool_call|>"),
    # Command R7B, Command A.
    CallFormat(
        "command",
        shown_by=("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters"),
        begin="<|START_ACTION|>",
        end="<|END_ACTION|>",
        name_keys=("tool_name",),
        argument_keys=("parameters",),
        id_key="tool_call_id",
    ),
    # Phi-4-mini, by the template that vLLM has for it.
    CallFormat("functools", shown_by=("functools[",), begin="functools"),
)
"""Formats of tool calls; the first that a template shows is the model's."""

REASONING_FORMATS = (
    # Qwen 3, QwQ, DeepSeek R1 and V3.1, SmolLM 3.
    ReasoningFormat("think", "<think>", "</think>"),
    # Command R7B, Command A Reasoning.
    ReasoningFormat("command", "<|START_THINKING|>", "<|END_THINKING|>"),
    # Magistral.
    ReasoningFormat("magistral", "[THINK]", "[/THINK]"),
)
"""Formats of reasoning; the first that a template shows is the model's."""

CALL_FORMATS_BY_NAME = {each.name: each for each in CALL_FORMATS}
REASONING_FORMATS_BY_NAME = {each.name: each for each in REASONING_FORMATS}


def find_call_format(source: str) -> str:
    """Return the name of the format of tool calls that a chat template shows; "" for none."""
    for each in CALL_FORMATS:
        if all(text in source for text in each.shown_by) and not any(
            text in source for text in each.hidden_by
        ):
            return each.name
    return ""


def find_reasoning_format(source: str) -> str:
    """Return the name of the format of reasoning that a chat template shows; "" for none."""
    for each in REASONING_FORMATS:
        if each.end in source:
            return each.name
    return ""


def ends_in_reasoning(prompt: str, name: str) -> bool:
    """Return whether a prompt's last mark of reasoning opens it, with no text after it."""
    return bool(name) and prompt.rstrip().endswith(REASONING_FORMATS_BY_NAME[name].begin)
