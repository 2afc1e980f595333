"""Adapters whose rows can share a forward pass: found at load, and checked against each alone."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from whence_server.engines.transformers import batching_check, step_capture
from whence_server.engines.transformers.adapted_models import AdaptedModel
from whence_server.engines.transformers.internals.layers import find_layers
from whence_server.engines.transformers.internals.lens import Lens
from whence_server.engines.transformers.internals.probe import Probe
from whence_server.engines.transformers.mixed_runner import MixedRunner, Way
from whence_server.engines.transformers.prefix_cache import PrefixCache
from whence_server.engines.transformers.row_lora import RowIndex, copy_with_rows, read_lora
from whence_server.engines.transformers.style import ForwardStyle

logger = logging.getLogger(__name__)

PROMPT_LENGTH = 5
LEAST_ROWS = 16
"""Least number of rows that a mixed pass takes; the checks at load need some."""


class MixedAdapters(NamedTuple):
    """The served model and the adapters whose rows can share a pass with its own.

    Attributes:
        style: call style of the model.
        ways: way to run a pass with each adapter alone, by its name; that of "" has none.
        mixed: way to run a pass over rows with different adapters.
        row_index: adapters of the rows of a mixed pass.
    """

    style: ForwardStyle
    ways: dict[str, Way]
    mixed: Way
    row_index: RowIndex

    def make_runner(self, prefixes: PrefixCache | None = None) -> MixedRunner:
        """Return a new runner without rows, which keeps prefixes in `prefixes`."""
        return MixedRunner(self.style, self.ways, self.mixed, self.row_index, prefixes)


def find_mixed(
    own: Way, style: ForwardStyle, adapted: Sequence[AdaptedModel], max_rows: int
) -> MixedAdapters | None:
    """Return the adapters whose rows can share a pass; None if there are none.

    Args:
        own: way to run a pass without an adapter.
        style: call style of the model.
        adapted: the model with each adapter.
        max_rows: largest number of rows that decode together.
    """
    weights = {each.info.name: read_lora(each.model, own.model) for each in adapted}
    sharing = {name: of_adapter for name, of_adapter in weights.items() if of_adapter is not None}
    alone = sorted(weights.keys() - sharing.keys())
    if alone:
        logger.info("a forward pass of its own is run for each of: %s", ", ".join(alone))
    if not sharing:
        return None
    ways = {"": own} | {
        each.info.name: Way(each.model, each.graph, each.probe)
        for each in adapted
        if each.info.name in sharing
    }
    index = RowIndex(max(max_rows, LEAST_ROWS, len(ways)), own.model.device)
    model = copy_with_rows(own.model, [sharing[name] for name in ways if name], index)
    found = MixedAdapters(style, ways, Way(model, None, _join_probes(model, ways)), index)
    obstacle = _find_obstacle(found)
    if obstacle:
        logger.info("a forward pass is run for each adapter: %s", obstacle)
        return None
    return _capture(found)


def _join_probes(model: Any, ways: dict[str, Way]) -> Probe:
    """Return a probe that collects what the adapters' probes read."""
    probes = [way.probe for way in ways.values()]
    norms = next((probe.norms for probe in probes if probe.norms is not None), None)
    reads_layers = any(probe.lens is not None for probe in probes)
    return Probe(norms, Lens(list(find_layers(model)), None) if reads_layers else None)


def _find_obstacle(found: MixedAdapters) -> str:
    """Return the reason why a mixed pass cannot be used; "" if there is none."""
    try:
        correct = _is_correct(found)
    except Exception as error:  # noqa: BLE001 - code of others: any failure means no
        # A layer of experts reads the tokens of all rows in one list.
        return f"rows with several adapters cannot share one: {error}"
    return "" if correct else "in a pass over rows with several adapters the logits differ"


def _is_correct(found: MixedAdapters) -> bool:
    """Return whether each row of a mixed step has the logits that its adapter gives it alone."""
    runner, prompts = found.make_runner(), _make_prompts(found)
    for name, prompt in prompts.items():
        _join(runner, name, prompt[:-1])
    together = runner.decode([prompt[-1] for prompt in prompts.values()])
    return all(
        batching_check.are_alike(
            way.model, logits, batching_check.run_plain(way.model, prompts[name])[-1]
        )
        for logits, (name, way) in zip(together, found.ways.items(), strict=True)
    )


def _capture(found: MixedAdapters) -> MixedAdapters:
    """Return the adapters with a captured mixed step, if its logits are those of the modules."""
    way = found.mixed
    found.row_index.set([0] * LEAST_ROWS)
    graph = step_capture.capture_step(way.model, found.style, way.probe)
    captured = found._replace(mixed=way._replace(graph=graph))
    if graph is None or _decode_changing(captured) != _decode_changing(found):
        return found
    return captured


def _decode_changing(found: MixedAdapters) -> list[float]:
    """Return the largest logits of steps between which rows with other adapters come and go."""
    runner = found.make_runner()
    seen: list[float] = []
    for name, prompt in _make_prompts(found).items():
        _join(runner, name, prompt)
        _join(runner, "", prompt)
        seen += runner.decode([7] * runner.num_rows).max(-1).values.tolist()
        runner.leave(0)
        seen += runner.decode([9] * runner.num_rows).max(-1).values.tolist()
    return seen


def _make_prompts(found: MixedAdapters) -> dict[str, list[int]]:
    """Return a prompt for each adapter, of different lengths."""
    config = found.ways[""].model.config.get_text_config(decoder=True)
    return {
        name: [(13 * i + 7 * number + 3) % config.vocab_size for i in range(PROMPT_LENGTH + number)]
        for number, name in enumerate(found.ways)
    }


def _join(runner: MixedRunner, adapter: str, token_ids: list[int]) -> None:
    prompt = runner.start(token_ids, adapter=adapter)
    runner.prefill(prompt, len(token_ids), all_logits=False)
    runner.join(prompt)
