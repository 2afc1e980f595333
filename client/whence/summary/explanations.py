"""Lines in words about an explanation and its trust."""

import math

from whence.summary.numbers import count, format_probability
from whence.summary.quoting import quote_briefly
from whence.v1 import explanation_pb2 as pb

_VERDICTS = {
    pb.TRUST_VERDICT_UNDETERMINED: "undetermined",
    pb.TRUST_VERDICT_LOW: "LOW",
    pb.TRUST_VERDICT_MODERATE: "moderate",
    pb.TRUST_VERDICT_HIGH: "high",
}
_MEANINGS = {
    pb.TRUST_VERDICT_UNDETERMINED: "the interval includes 0, so that nothing can be said",
    pb.TRUST_VERDICT_LOW: "the scores hardly tell what a change of the context does",
    pb.TRUST_VERDICT_MODERATE: "the scores tell in part what a change of the context does",
    pb.TRUST_VERDICT_HIGH: "the scores tell what a change of the context does",
}
_TOO_FEW = "too few segments to measure it; ask for smaller ones"
_MOST_TEXT = 60


def name_method(method: int) -> str:
    """Return the name of a method as the command has it: "leave-one-out"."""
    try:
        name = pb.ExplainMethod.Name(pb.ExplainMethod.ValueType(method))
    except ValueError:
        return f"method {method}"
    return name.removeprefix("EXPLAIN_METHOD_").lower().replace("_", "-")


def describe_trust(explanation: pb.Explanation) -> str:
    """Return the trust of an explanation: its verdict, and the numbers that it rests on."""
    if not explanation.HasField("trust"):
        return "not measured"
    trust = explanation.trust
    verdict = _VERDICTS.get(trust.verdict, "unknown to this version")
    if trust.verdict == pb.TRUST_VERDICT_UNDETERMINED and not trust.num_ablations:
        return f"{verdict}: {_TOO_FEW}"
    meaning = _MEANINGS.get(trust.verdict)
    return (
        f"{verdict}, correlation {trust.correlation:.2f} "
        f"({trust.correlation_low:.2f} to {trust.correlation_high:.2f}) over "
        f"{count(trust.num_ablations, 'ablation')}{_describe_operator(explanation)}"
        + (f": {meaning}" if meaning else "")
    )


def _describe_operator(explanation: pb.Explanation) -> str:
    """Return that the method took parts out as the test does, if so."""
    try:
        name = pb.AblationOperator.Name(explanation.trust.operator)
    except ValueError:
        return ""
    used = explanation.parameters.get("operator")
    own = name.removeprefix("ABLATION_OPERATOR_").lower()
    return " with the method's own operator" if used == own else ""


def describe_span(span: pb.ExplainedSpan) -> str:
    """Return what is explained: the span, its place, its probability, and the contrast."""
    told = quote_briefly(span.text, _MOST_TEXT) if span.text else f"tokens {list(span.token_ids)}"
    if span.end_step - span.begin_step == 1:
        told += f" (step {span.begin_step})"
    else:
        told += f" (steps {span.begin_step} to {span.end_step - 1})"
    if not span.against_token_ids and not span.against_text:
        return f"{told}, p = {format_probability(span.value)}"
    against = (
        quote_briefly(span.against_text, _MOST_TEXT)
        if span.against_text
        else f"tokens {list(span.against_token_ids)}"
    )
    times = f"{math.exp(min(abs(span.value), 700)):.3g} times as likely"
    return f"{told} rather than {against}, {span.value:+.3f} nats: " + (
        times if span.value >= 0 else f"the other is {times}"
    )


def describe_computation(explanation: pb.Explanation) -> str:
    """Return method, parameters, size and time of the computation."""
    parameters = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in sorted(explanation.parameters.items())
    )
    parts = [f"{name_method(explanation.method)} {explanation.method_version}"]
    parts += [parameters] if parameters else []
    parts.append(count(len(explanation.segments), "segment"))
    if explanation.num_passes:
        parts.append(
            f"{explanation.num_passes:,} pass" + ("es" if explanation.num_passes > 1 else "")
        )
    parts.append(f"{explanation.elapsed_seconds:.2f} s")
    if explanation.HasField("gap"):
        parts.append(f"gap {explanation.gap:+.2e}")
    return ", ".join(parts)
