"""Translation of the journal's SQL, which is SQLite's, to PostgreSQL's.

This is the only place that knows the differences. Texts are stored as `bytea`: their bytes compare
as SQLite compares texts, in every locale, and a text may hold NUL, which PostgreSQL's own type
refuses.
"""

import re
from functools import lru_cache

_QUERY = (
    (re.compile(r"%"), "%%"),
    (re.compile(r"CAST\(\? AS TEXT\)"), "?"),
    (re.compile(r"CAST\((.+?) AS BLOB\)"), r"\1"),
    (re.compile(r"\bx''"), "''::bytea"),
    (re.compile(r"\bmin\(max\(\?, 0\), 0\)"), "least(greatest(?, 0), 0)"),
    (re.compile(r"\bmax\(\?, 0\)"), "greatest(?, 0)"),
    # The planner chooses an index and the order of a join by its statistics.
    (re.compile(r" INDEXED BY \w+"), ""),
    (re.compile(r"\bCROSS JOIN\b"), "JOIN"),
    (re.compile(r"\bsqlite_schema WHERE name\b"), "pg_class WHERE relname"),
    (re.compile(r"\?"), "%s"),
)
_DEFINITION = (
    (re.compile(r"--[^\n]*"), ""),
    (re.compile(r"\bINTEGER\b"), "BIGINT"),
    (re.compile(r"\b(?:TEXT|BLOB)\b"), "BYTEA"),
    (re.compile(r"\)\s*STRICT(?:, WITHOUT ROWID)?"), ")"),
)


@lru_cache(maxsize=1_024)
def translate_query(sql: str) -> str:
    """Translate a statement with bindings, `?`, to psycopg's `%s`."""
    for pattern, replacement in _QUERY:
        sql = pattern.sub(replacement, sql)
    return sql


def translate_definition(sql: str) -> str:
    """Translate statements without bindings that define tables and indexes."""
    for pattern, replacement in _DEFINITION:
        sql = pattern.sub(replacement, sql)
    return sql
