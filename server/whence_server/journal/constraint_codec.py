"""Encoding of a constraint as the contract's message."""

from whence.v1 import generation_pb2
from whence_server.domain.constraints import Constraint, Language


def fill_constraint(message: generation_pb2.Constraint, constraint: Constraint) -> None:
    """Set the fields of an empty message."""
    match constraint.language:
        case Language.JSON_SCHEMA:
            message.json_schema = constraint.text
        case Language.REGEX:
            message.regex = constraint.text
        case Language.GRAMMAR:
            message.grammar.text = constraint.text
            message.grammar.syntax = generation_pb2.GrammarSyntax.ValueType(constraint.syntax.value)
