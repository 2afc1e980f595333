"""Tests of one architecture run in one worker, and all others by file."""

import pytest
from distribution import find_group

ORACLE = "tests/integration/test_engine_oracle.py"


@pytest.mark.parametrize(
    ("node_id", "group"),
    [
        (f"{ORACLE}::test_rows_come_and_go[jamba-16]", "architecture jamba"),
        (f"{ORACLE}::test_prompt[5-qwen2_moe]", "architecture qwen2_moe"),
        (
            "tests/integration/test_engine_internals.py::test_half[gpt2-bfloat16]",
            "architecture gpt2",
        ),
        (f"{ORACLE}::test_full_context", ORACLE),
        ("tests/unit/test_text.py::test_text[gpt2]", "tests/unit/test_text.py"),
    ],
)
def test_group_is_the_architecture_or_the_file(node_id: str, group: str) -> None:
    assert find_group(node_id) == group
