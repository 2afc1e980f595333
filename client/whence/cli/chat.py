"""The chat of `whence generate`: its options, its messages, and the tool calls of its output."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whence.cli.connection import parse_json_object
from whence.cli.exits import UsageError
from whence.generation import GenerationState
from whence.outputs import ToolCall
from whence.summary import escape


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Add the prompt, and the options of a chat."""
    parser.add_argument(
        "prompt", nargs="?", help='the prompt; "-" reads standard input; not with --messages'
    )
    parser.add_argument("--chat", action="store_true", help="treat the prompt as a user's message")
    parser.add_argument(
        "--system", metavar="TEXT", help="system message before the user's message; for --chat"
    )
    parser.add_argument(
        "--messages",
        metavar="FILE",
        help="conversation instead of a prompt: a JSON array of messages in OpenAI's form; "
        '"-" reads standard input',
    )
    parser.add_argument(
        "--tools",
        metavar="FILE",
        help="definitions of tools, as a JSON array; for --chat and --messages",
    )
    parser.add_argument(
        "--continue-final-message",
        action="store_true",
        default=None,
        help="continue the last message instead of beginning a new one; for --messages",
    )
    parser.add_argument(
        "--template-arguments",
        type=parse_json_object,
        metavar="JSON",
        help="variables for the chat template, as a JSON object; for --chat and --messages",
    )
    parser.add_argument(
        "--template-name",
        metavar="NAME",
        help="name of the chat template, if the model has several; for --chat and --messages",
    )


def read_input(arguments: argparse.Namespace) -> tuple[str | None, dict[str, Any]]:
    """Return the prompt, or None and the options that stand for it.

    Raises:
        UsageError: there is no input, there are two, or a file cannot be read as JSON.
    """
    options: dict[str, Any] = {}
    if arguments.tools is not None:
        options["tools"] = _read_json(arguments.tools, "--tools")
    if arguments.messages is not None:
        if arguments.prompt is not None or arguments.chat or arguments.system is not None:
            raise UsageError("--messages is the whole input: give no prompt, --chat or --system")
        return None, options | {"messages": _read_json(arguments.messages, "--messages")}
    if arguments.prompt is None:
        raise UsageError("there is nothing to continue: give a prompt or --messages FILE")
    prompt: str = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not arguments.chat and arguments.system is None:
        return prompt, options
    system = [] if arguments.system is None else [_make_message("system", arguments.system)]
    return None, options | {"messages": [*system, _make_message("user", prompt)]}


def format_calls(generation: GenerationState) -> Iterator[str]:
    """Yield a line for each tool call that the server read from the output."""
    several = len(generation.sequences) > 1
    for sequence in generation.sequences:
        place = f" of sequence {sequence.sequence_index}" if several else ""
        for call in sequence.tool_calls:
            yield f"tool call {escape(call.id)}{place}: {format_call(call)}"


def format_call(call: ToolCall) -> str:
    """Return a tool call's name and arguments on one line."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return escape(f"{call.name} {arguments}").replace("\n", " ")


def _read_json(path: str, flag: str) -> Any:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag} {path} is no JSON: {error}") from None


def _make_message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
