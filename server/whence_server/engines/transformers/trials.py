"""Trials of a loaded model: its call style, its probe and its captured step, found by trying.

The trials run the model some forty times. `repeat` puts their findings into effect without most of
these runs, for a model that was tried before under the same conditions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import InternalsInfo, StepKernels
from whence_server.engines.transformers import batching_check, step_capture
from whence_server.engines.transformers.findings_cache import Findings
from whence_server.engines.transformers.frequencies import Frequencies
from whence_server.engines.transformers.internals import attention
from whence_server.engines.transformers.internals.head_weights import HeadWeights
from whence_server.engines.transformers.internals.probe import NO_PROBE, DeferredProbe, Probe
from whence_server.engines.transformers.internals.probe_building import build_probe
from whence_server.engines.transformers.pass_dependence import find_pass_dependence
from whence_server.engines.transformers.prefix_check import reuses_prefixes
from whence_server.engines.transformers.step_graph import StepGraph
from whence_server.engines.transformers.style import ForwardStyle


class Tried(NamedTuple):
    """Result of the trials of a model.

    Attributes:
        style: call style for a batch; None if every sequence decodes by itself.
        obstacle: reason why our attention function is not in place; None if it is.
        graph: the captured decoding step; None if it cannot be captured.
        probe: reads the model's activations.
        internals: internals that the probe gives.
        reuses_prefixes: True if the logits are the same with a prefix cache.
        pass_dependence: reason why results depend on the division into passes; "" if they do not.
        deferred: work that is due before the first generation with internals.
    """

    style: ForwardStyle | None
    obstacle: str | None
    graph: StepGraph | None
    probe: Probe
    internals: InternalsInfo
    reuses_prefixes: bool
    pass_dependence: str
    deferred: Sequence[Callable[[], object]] = ()


def try_out(
    model: Any, rotary: Frequencies, head_weights: HeadWeights | None, kernels: StepKernels
) -> tuple[Tried, Findings]:
    """Find out how a model can be called, probed and captured, and leave it so.

    Raises:
        ConfigurationError: the model cannot decode, or does not match the head weights.
    """
    dependence = find_pass_dependence(model)
    style, obstacle = _find_style(model, rotary, dependence)
    probe, internals = build_probe(model, style, obstacle, head_weights)
    graph = None if style is None else step_capture.capture_step(model, style, probe, kernels)
    findings = Findings(
        style,
        obstacle,
        internals,
        captured=graph is not None,
        captured_probed=graph is not None and graph.has_probe,
        packed=graph is not None and graph.packed,
        reuses_prefixes=reuses_prefixes(model, style),
        pass_dependence=dependence,
    )
    reuses = findings.reuses_prefixes
    tried = Tried(style, obstacle, graph, probe, internals, reuses, dependence)
    return tried, findings


def repeat(model: Any, findings: Findings, head_weights: HeadWeights | None) -> Tried | None:
    """Put findings about the model into effect; the probe is built when it is first needed.

    Returns:
        None if the captured step no longer has the logits of the modules: then nothing that was
        found counts, and the model has its original attention.
    """
    style, obstacle = findings.style, findings.attention_obstacle
    if obstacle is None:
        attention.install(model)
    probe: Probe = NO_PROBE
    deferred: list[Callable[[], object]] = []
    if findings.internals.unavailable.keys() < {"sources", "layers"}:
        probe = DeferredProbe(lambda: build_probe(model, style, obstacle, head_weights)[0])
        deferred.append(probe.complete)
    graph = None
    if style is not None and findings.captured:
        graph = step_capture.capture_again(
            model, style, probe, probed=findings.captured_probed, packed=findings.packed
        )
        if graph is None:
            attention.restore(model)
            return None
        deferred.append(graph.complete)
    return Tried(
        style,
        obstacle,
        graph,
        probe,
        findings.internals,
        findings.reuses_prefixes,
        findings.pass_dependence,
        deferred,
    )


def _find_style(
    model: Any, rotary: Frequencies, dependence: str
) -> tuple[ForwardStyle | None, str | None]:
    """Find the model's call style, with our attention function in place if it can be.

    Returns:
        The call style, None if every sequence decodes by itself; and the reason why our attention
        is not in place, None if it is.

    Raises:
        ConfigurationError: the model cannot decode.
    """
    # Layers that depend on the pass also turn a last bit of another attention function into a step.
    obstacle = dependence or attention.adopt(model)
    if obstacle is not None:
        return batching_check.check_batching(model, rotary, dependence), obstacle
    decodes = True
    try:
        style = batching_check.check_batching(model, rotary, dependence)
    except ConfigurationError:
        style, decodes = None, False
    if style is not None:
        return style, None
    attention.restore(model)
    style = batching_check.check_batching(model, rotary, dependence)
    if style is None and decodes:
        # Every sequence decodes by itself, with either attention function.
        attention.install(model)
        return None, None
    return style, "with our attention function it gives other logits"
