"""The head reads the last position of a prompt with one matrix product, in place."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_harness import loaded_model
from torch.utils._python_dispatch import TorchDispatchMode

from whence_server.engines.transformers.head_input import lay_out_head_input

TOKENS = [[5, 6, 7, 8]]


class Products(TorchDispatchMode):
    """Shapes of the second factors of all matrix products, by the product's name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in {torch.ops.aten.mm, torch.ops.aten.bmm}:
            self.seen.append((str(func._overloadpacket), tuple(args[1].shape)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_positions_logits_need_no_batch_of_products(
    tiny_model: Callable[[str], Path], dtype: str
) -> None:
    model = loaded_model(tiny_model("llama"), dtype=dtype).model
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        every = model(input_ids=torch.tensor(TOKENS)).logits[0, -1:]
        with Products() as products:
            last = model(input_ids=torch.tensor(TOKENS), logits_to_keep=1).logits[0]
    of_head = [name for name, shape in products.seen if shape[-2:] == head.T.shape]
    assert of_head == ["aten.mm"]
    torch.testing.assert_close(last, every)


def test_a_head_that_is_given_its_input_by_name_is_left_alone() -> None:
    head = torch.nn.Linear(4, 7, bias=False)
    lay_out_head_input(SimpleNamespace(get_output_embeddings=lambda: head))
    hidden = torch.randn(1, 3, 4)[:, -1:]
    torch.testing.assert_close(head(input=hidden), head(hidden))
