"""Language that the text of a generation has to belong to."""

from dataclasses import dataclass
from enum import Enum


class Language(Enum):
    """Form in which a language is given; values are names in the contract."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"


class GrammarSyntax(Enum):
    """Syntax of a grammar's text; the numbers are the contract's."""

    LARK = 1
    EBNF = 2


@dataclass(frozen=True, slots=True)
class Constraint:
    """A language, as the request gives it.

    Attributes:
        language: form of `text`.
        text: a JSON Schema, a regular expression or a grammar.
        syntax: the grammar's; LARK for the other forms, which do not use it.
    """

    language: Language
    text: str
    syntax: GrammarSyntax = GrammarSyntax.LARK

    @property
    def field(self) -> str:
        """Path of the text's field in the request."""
        path = f"decoding.constraint.{self.language.value}"
        return f"{path}.text" if self.language is Language.GRAMMAR else path
