"""Structure of a regular expression in RE2's syntax: its bounds, and the beginnings of its matches.

RE2 has checked the expression before, so that its syntax is known to be right. RE2 tells neither
the longest match of an expression nor whether a text could still grow to a match.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FLAGS = re.compile(r"\(\?[imsU]*(?:-[imsU]+)?\)")
_OPENING = re.compile(r"\((?:\?(?:P?<\w+>|(?P<flags>[imsU]*(?:-[imsU]+)?):))?")
_REPEAT = re.compile(r"(?:[*+?]|\{(?P<low>\d+)(?P<comma>,(?P<high>\d*))?\})(?P<lazy>\??)")
_ESCAPE = re.compile(
    r"\\(?:[pP](?:\{[^}]*\}|.)|x(?:\{[^}]*\}|[0-9A-Fa-f]{2})|[0-7]{1,3}|.)", re.DOTALL
)
_ANCHORS = frozenset({"^", "$", r"\b", r"\B", r"\A", r"\z"})
_WIDEST_CHARACTER = 4
_LETTERS = frozenset("dDsSwWpP")
"""Letters after a backslash that stand for classes of characters."""


class UnboundedError(ValueError):
    """The expression has a part that whence does not search; the message names its position."""


@dataclass(frozen=True, slots=True)
class Character:
    """One character, or a class of them."""

    source: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """Condition on the characters before and after a place."""

    source: str


@dataclass(frozen=True, slots=True)
class Row:
    """Parts that follow each other."""

    parts: "Sequence[Node]"


@dataclass(frozen=True, slots=True)
class Choice:
    """Alternatives."""

    parts: "Sequence[Node]"


@dataclass(frozen=True, slots=True)
class Group:
    """A part in parentheses, with flags of its own."""

    opening: str
    part: "Node"


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part that occurs several times."""

    part: "Node"
    low: int
    high: int
    source: str


Node = Character | Anchor | Row | Choice | Group | Repeat


def measure_longest(node: Node) -> int:
    """Return an upper bound on the bytes of an expression's matches."""
    match node:
        case Character():
            return node.num_bytes
        case Anchor():
            return 0
        case Row():
            return sum(map(measure_longest, node.parts))
        case Choice():
            return max(map(measure_longest, node.parts))
        case Group():
            return measure_longest(node.part)
        case Repeat():
            return node.high * measure_longest(node.part)


def measure_shortest(node: Node) -> int:
    """Return the characters of an expression's shortest match."""
    match node:
        case Character():
            return 1
        case Anchor():
            return 0
        case Row():
            return sum(map(measure_shortest, node.parts))
        case Choice():
            return min(map(measure_shortest, node.parts))
        case Group():
            return measure_shortest(node.part)
        case Repeat():
            return node.low * measure_shortest(node.part)


def write(node: Node) -> str:
    """Return the source of an expression, with groups that capture nothing."""
    match node:
        case Character() | Anchor():
            return node.source
        case Row():
            return "".join(map(write, node.parts))
        case Choice():
            return "|".join(map(write, node.parts))
        case Group():
            return f"{node.opening}{write(node.part)})"
        case Repeat():
            return f"{write(node.part)}{node.source}"


def write_beginnings(node: Node) -> str:
    """Return the source of an expression that matches all beginnings of another one's matches.

    The empty text is among them, and so is the whole of a match: a longer one may follow.
    """
    match node:
        case Character():
            return f"{node.source}?"
        case Anchor() | Repeat(high=0):
            # The character after an anchor is not known yet.
            return ""
        case Row():
            return _write_beginnings_of_row(node.parts)
        case Choice():
            return "(?:" + "|".join(map(write_beginnings, node.parts)) + ")"
        case Group():
            return f"{node.opening}{write_beginnings(node.part)})"
        case Repeat():
            return f"{write(node.part)}{{0,{node.high - 1}}}{write_beginnings(node.part)}"


def _write_beginnings_of_row(parts: Sequence[Node]) -> str:
    num_leading = 0
    while num_leading < len(parts) and isinstance(parts[num_leading], Anchor):
        num_leading += 1
    source = ""
    for part in reversed(parts[num_leading:]):
        if not source:
            source = write_beginnings(part)
        elif isinstance(part, Character):
            # What follows may begin with a condition on a character that is not known yet.
            source = f"(?:{write(part)}(?:{source})?)?"
        elif isinstance(part, Anchor):
            source = write(part) + source
        else:
            source = f"(?:{write_beginnings(part)}|{write(part)}{source})"
    # Leading anchors are kept: once the text goes on, the characters around them are known.
    return "".join(map(write, parts[:num_leading])) + source


def parse(source: str) -> Node:
    """Return the structure of an expression that RE2 accepts.

    Raises:
        UnboundedError: a part may repeat without a bound, or is one that is not searched.
    """
    return _Parser(source).parse()


class _Parser:
    """Reader of one expression."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._ignores_case = re.search(r"\(\?[msU]*i", source) is not None

    def parse(self) -> Node:
        flags = _FLAGS.match(self._source)
        if flags is None:
            return self._take_choice()
        self._at = flags.end()
        return Group(f"{flags.group()[:-1]}:", self._take_choice())

    def _take_choice(self) -> Node:
        parts = [self._take_row()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._take_row())
        return parts[0] if len(parts) == 1 else Choice(parts)

    def _take_row(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            part = self._take_part()
            repeat = _REPEAT.match(self._source, self._at)
            parts.append(part if repeat is None else self._repeat(part, repeat))
        return Row(parts)

    def _take_part(self) -> Node:
        begin, source = self._at, self._source
        if source[begin] == "(":
            return self._take_group()
        if source[begin] == "[":
            self._at = self._find_class_end()
            return Character(source[begin : self._at], _WIDEST_CHARACTER)
        if source[begin] == "\\":
            return self._take_escape()
        self._at += 1
        if source[begin] in _ANCHORS:
            return Anchor(source[begin])
        if source[begin] == ".":
            return Character(".", _WIDEST_CHARACTER)
        return Character(source[begin], self._measure(source[begin]))

    def _take_group(self) -> Node:
        begin = self._at
        if _FLAGS.match(self._source, begin) is not None:
            raise self._make_error(begin, "sets flags: write them at the beginning, or as (?i:...)")
        opening = _OPENING.match(self._source, begin)
        if opening is None:
            raise self._make_error(begin, "opens a group that is not supported")
        self._at = opening.end()
        part = self._take_choice()
        self._at += 1
        return Group(f"(?{opening['flags'] or ''}:", part)

    def _take_escape(self) -> Node:
        escape = _ESCAPE.match(self._source, self._at)
        if escape is None or escape.group() in {r"\C", r"\Q"}:
            raise self._make_error(
                self._at, "is not supported: \\C is no character, and \\Q is written as escapes"
            )
        begin, self._at = self._at, escape.end()
        if escape.group() in _ANCHORS:
            return Anchor(escape.group())
        letter = self._source[begin + 1]
        is_class = letter in _LETTERS or letter in "x01234567"
        return Character(escape.group(), _WIDEST_CHARACTER if is_class else self._measure(letter))

    def _find_class_end(self) -> int:
        """Return the end of the class of characters that begins here."""
        source, at = self._source, self._at + 1
        at += source.startswith("^", at)
        at += source.startswith("]", at)
        while source[at] != "]":
            if source[at] == "\\":
                escape = _ESCAPE.match(source, at)
                at = at + 1 if escape is None else escape.end()
            elif source.startswith("[:", at) and (end := source.find(":]", at)) > 0:
                at = end + 2
            else:
                at += 1
        return at + 1

    def _repeat(self, part: Node, repeat: re.Match[str]) -> Node:
        begin, self._at = self._at, repeat.end()
        sign = repeat.group()[0]
        low = int(repeat["low"]) if sign == "{" else int(sign == "+")
        if sign == "?":
            high = 1
        elif sign == "{" and (not repeat["comma"] or repeat["high"]):
            high = int(repeat["high"] or low)
        else:
            raise self._make_error(
                begin, f"repeats without a bound: write {{{low},64}}, with the most that can occur"
            )
        return Repeat(part, low, high, repeat.group())

    def _measure(self, character: str) -> int:
        # Some letters of one byte have a form of the other case with three: K and the kelvin sign.
        return _WIDEST_CHARACTER if self._ignores_case else len(character.encode())

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _make_error(self, at: int, description: str) -> UnboundedError:
        part = self._source[at : at + 12]
        return UnboundedError(f"{part!r} at character {at + 1} {description}")
