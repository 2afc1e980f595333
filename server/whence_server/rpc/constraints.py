"""Conversion of a request's constraint from protobuf to the domain."""

from whence.v1 import generation_pb2
from whence_server.domain.constraints import Constraint, GrammarSyntax, Language
from whence_server.domain.errors import FieldViolation, InvalidRequestError


def convert_constraint(message: generation_pb2.Constraint) -> Constraint:
    """Return the constraint of a request.

    Raises:
        InvalidRequestError: no language is set, or the syntax of the grammar is unknown.
    """
    kind = message.WhichOneof("language")
    if kind is None:
        raise _refuse("", "one of `json_schema`, `regex` or `grammar` must be set")
    language = Language(kind)
    if language is not Language.GRAMMAR:
        return Constraint(language, getattr(message, kind))
    grammar = message.grammar
    try:
        syntax = GrammarSyntax(grammar.syntax) if grammar.syntax else GrammarSyntax.LARK
    except ValueError:
        raise _refuse(".grammar.syntax", "is no GrammarSyntax value") from None
    return Constraint(language, grammar.text, syntax)


def _refuse(path: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(f"decoding.constraint{path}", description))
