"""Lens: token probabilities after each layer, by the model's own last stages.

A layer's output is sent through all that the model does after its last layer, and the later layers
are left out. To this end the model's forward pass runs with its layers replaced by a function that
returns the output, so that norms, projections, scaling and soft caps are the architecture's own (a
norm and the head alone would be wrong for several architectures). Only the rows of the head that
a step's candidates need are multiplied. (Method: nostalgebraist, "interpreting GPT: the logit
lens", 2020.) The result shows what is decodable after a layer, not what caused the choice.
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch.nn.functional import embedding

from whence_server.domain.steps import Decision
from whence_server.engines.transformers.internals.layers import (
    collect_layer_outputs,
    find_layers,
    replace_layers,
    run_first_layer,
)
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.engines.transformers.torchscript import trace

NUM_PROBED = 12
"""Number of token ids whose logits are compared before a lens is used."""
PROMPT = (3, 10, 17, 24, 31)


class LensReadout(NamedTuple):
    """Probabilities of one token after each layer.

    Attributes:
        shares: the chosen token's probability among the candidates and itself.
        leaders: index of the most likely candidate; one beyond the last is the chosen token.
    """

    shares: list[float]
    leaders: list[int]


class Lens:
    """Reader of layers' outputs through a model's last stages; made by `build_lens`.

    Attributes:
        layers: the layers whose outputs are read.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], stages: Any) -> None:
        self.layers = layers
        self._stages = stages

    def compute_logits(self, hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of some tokens after each layer.

        Args:
            hidden: [rows, layers, width], the layers' outputs for the newest token.
            token_ids: int64 [rows, n], the tokens.

        Returns:
            float32 [rows, layers, n]
        """
        logits: torch.Tensor = self._stages(hidden, token_ids)
        return logits.float()

    def read(self, hidden: torch.Tensor, decisions: Sequence[Decision]) -> list[LensReadout | None]:
        """Read the layers for each row's chosen token, among its own candidates.

        Args:
            hidden: [rows, layers, width]
            decisions: one for each row; the readout of one without candidates is None.
        """
        rows = [row for row, decision in enumerate(decisions) if _list_candidates(decision)]
        lens_readouts: list[LensReadout | None] = [None] * len(decisions)
        if rows:
            some = hidden if len(rows) == len(decisions) else hidden[rows]
            read = self._read(some, [decisions[row] for row in rows])
            for row, lens_readout in zip(rows, read, strict=True):
                lens_readouts[row] = lens_readout
        return lens_readouts

    def _read(self, hidden: torch.Tensor, decisions: Sequence[Decision]) -> list[LensReadout]:
        """Read the layers for rows that all have candidates."""
        tables = [_list_tokens(decision) for decision in decisions]
        widest = max(len(table) for table in tables)
        # Padded with the chosen token; the copies are masked below.
        padded = [table[:-1] + table[-1:] * (widest - len(table) + 1) for table in tables]
        token_ids = torch.tensor(padded, device=hidden.device)
        logits = self.compute_logits(hidden, token_ids)
        extra = torch.tensor(
            [_mark_repeated(*each, widest) for each in zip(decisions, tables, strict=True)]
        )
        logits = logits.masked_fill(extra.to(hidden.device).unsqueeze(1), -torch.inf)
        places = torch.tensor(
            [_find_place(decision) for decision in decisions], device=hidden.device
        )
        chosen = places[:, None, None].expand(-1, logits.shape[1], 1)
        shares = torch.softmax(logits, -1).gather(-1, chosen).squeeze(-1)
        lens_readouts = zip(shares.tolist(), logits.argmax(-1).tolist(), strict=True)
        return [LensReadout(*lens_readout) for lens_readout in lens_readouts]


def _list_candidates(decision: Decision) -> list[int]:
    return decision.candidates.token_ids if decision.candidates else []


def _list_tokens(decision: Decision) -> list[int]:
    """Return the step's candidates followed by the chosen token."""
    return [*_list_candidates(decision), decision.token_id]


def _find_place(decision: Decision) -> int:
    """Return the chosen token's index among the candidates; one beyond the last if it is none."""
    candidates = _list_candidates(decision)
    if decision.token_id in candidates:
        return candidates.index(decision.token_id)
    return len(candidates)


def _mark_repeated(decision: Decision, table: list[int], widest: int) -> list[bool]:
    """Return, for each column, whether it repeats the chosen token."""
    num_real = len(table) - 1 if decision.token_id in table[:-1] else len(table)
    return [column >= num_real for column in range(widest)]


@torch.inference_mode()
def build_lens(model: Any) -> Lens:
    """Build a lens, and check it against the model.

    After the last layer it must give the model's own logits, and after other layers those of the
    model with its later layers left out.

    Raises:
        UnavailableError: the logits differ, or the model's layers cannot be replaced.
    """
    layers = list(find_layers(model))
    try:
        like = run_first_layer(model, layers)
        stages = _Stages(model, layers, like)
        with suppress(Exception):  # if the captured graph fails, the modules are used
            lens = Lens(layers, _trace(stages, len(layers), like))
            _compare(model, lens, like)
            return lens
        lens = Lens(layers, stages)
        _compare(model, lens, like)
    except UnavailableError:
        raise
    except Exception as error:
        raise UnavailableError(
            f"its layers cannot be left out one by one: {type(error).__name__}: {error}"
        ) from error
    return lens


def _compute_without(
    model: Any, layers: Sequence[torch.nn.Module], last: int, like: Any
) -> torch.Tensor:
    with replace_layers(layers[last + 1 :], lambda hidden: hidden, like):
        logits: torch.Tensor = model(input_ids=_make_prompt(model), use_cache=False).logits
    return logits[0, -1]


def _compare(model: Any, lens: Lens, like: Any) -> None:
    layers = lens.layers
    with collect_layer_outputs(layers) as outputs:
        own = model(input_ids=_make_prompt(model), use_cache=False).logits[0, -1]
    if len(outputs) != len(layers):
        raise UnavailableError("its layers run in another order than they are listed")
    hidden = torch.stack(outputs, 1)  # (1, layers, width)
    # Two shapes, as the graph will be called with other numbers of rows and tokens.
    ids = torch.arange(NUM_PROBED, device=model.device) * (len(own) // NUM_PROBED)
    once = lens.compute_logits(hidden, ids[None, :5])[0]
    twice = lens.compute_logits(hidden.repeat(2, 1, 1), torch.stack((ids.flip(0), ids)))[1]
    probed = sorted({0, len(layers) // 2, len(layers) - 1})
    for layer in probed:
        expected = _compute_without(model, layers, layer, like) if layer < probed[-1] else own
        if not (
            _are_alike(once[layer], expected[ids[:5]]) and _are_alike(twice[layer], expected[ids])
        ):
            raise UnavailableError(
                f"after layer {layer}, its last stages give other logits than the model itself "
                "without its later layers"
            )


def _are_alike(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 1e-3 if torch.finfo(expected.dtype).bits >= 32 else 1e-1
    expected = expected.float()
    return torch.allclose(logits, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def _make_prompt(model: Any) -> torch.Tensor:
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    ids = [token_id % vocabulary_size for token_id in PROMPT]
    return torch.tensor([ids], device=model.device)


def _trace(stages: "_Stages", num_layers: int, like: Any) -> Any:
    """Return the stages as a TorchScript graph, without Python and without the layers' inputs."""
    output = like[0] if isinstance(like, tuple) else like
    hidden = output.new_zeros(2, num_layers, output.shape[-1])
    token_ids = torch.ones(2, 3, dtype=torch.int64, device=output.device)
    with warnings.catch_warnings():
        # Branches on shapes are in layers that do not run; `_compare` checks the result.
        warnings.simplefilter("ignore")
        return trace(stages, (hidden, token_ids))


class _Stages(torch.nn.Module):
    """A model's forward pass after the last layer, for some tokens of each row.

    A row's layers are passed in place of its positions, because the stages after the last layer
    treat each position independently, which `_compare` checks.
    """

    def __init__(self, model: Any, layers: Sequence[torch.nn.Module], like: Any) -> None:
        super().__init__()
        self._model = model
        self._head = model.get_output_embeddings()
        if not isinstance(self._head, torch.nn.Linear):
            raise UnavailableError("its head is not a linear layer over the vocabulary")
        self._layers = layers
        self._like = like

    def forward(self, hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Map [rows, layers, width] and token ids int64 [rows, n] to logits [rows, layers, n]."""
        head = self._head

        def project_rows(features: torch.Tensor) -> torch.Tensor:
            # Indexing the weight would give the same, and take four times as long.
            weight = embedding(token_ids, head.weight)  # (rows, n, width)
            logits = torch.matmul(features, weight.mT)
            return logits if head.bias is None else logits + head.bias[token_ids].unsqueeze(1)

        input_ids = hidden.new_zeros(hidden.shape[:2], dtype=torch.int64)
        with replace_layers(self._layers, lambda _hidden: hidden, self._like):
            head.forward = project_rows
            try:
                logits: torch.Tensor = self._model(input_ids=input_ids, use_cache=False).logits
            finally:
                del head.forward
        return logits
