"""Tables of docs/upstreams.md, made from the adapters' own data and grades.

`make upstream-tables` runs this module; a test compares the page with it.
"""

from pathlib import Path

from upstream_cases import CHAT, ask

from whence_server.domain.decoding import DECODING_OPTIONS
from whence_server.domain.observation import Distribution
from whence_server.engines.upstream.adapter import Adapter, Found
from whence_server.engines.upstream.exchange import UpstreamDescription, UpstreamRequest
from whence_server.engines.upstream.opening import ADAPTERS
from whence_server.engines.upstream.profile import Profile

PAGE = Path(__file__).parents[2] / "docs" / "upstreams.md"

_INTRODUCTION = """\
# Kinds of upstreams

An upstream is another engine that computes the tokens ([sidecar.md](sidecar.md)). This page is
made from the data of the adapters by `make upstream-tables`.

The adapters of llama.cpp and vLLM are tested with real servers. Those of SGLang, Ollama and
OpenAI follow the documentation and the sources of these servers. Their tests use answers that
were written by hand: no server of these kinds was asked. `tests/data/upstreams/` names the origin
of every answer.
"""

_SHOWN = {
    "ids": "token ids",
    "prompt": "prompt",
    "logprobs": "logprobs",
    "candidates": "candidates",
    "finish": "reason of the end",
}
_GRADES = ("token_ids", "distribution", "tables", "seed", "draw", "weights")
_PROBED = "found at start"


def render_page() -> str:
    """Return the page: what each kind shows, its grades, its options and its limits."""
    adapters = {kind: make() for kind, make in ADAPTERS.items()}
    titles = [adapter.profile.title for adapter in adapters.values()]
    parts = [
        _INTRODUCTION,
        *_render_shown(adapters, titles),
        *_render_grades(adapters),
        *_render_options(adapters, titles),
        *_render_limits(adapters, titles),
    ]
    return "\n".join(parts) + "\n"


def _render_shown(adapters: dict[str, Adapter], titles: list[str]) -> list[str]:
    lines = ["## What each kind shows", "", *_make_head("", titles)]
    for name, words in _SHOWN.items():
        cells = [getattr(adapter.profile.shown, name) for adapter in adapters.values()]
        lines.append(_make_row(words, cells))
    return lines


def _render_grades(adapters: dict[str, Adapter]) -> list[str]:
    lines = [
        "",
        "## Grades",
        "",
        "These are the grades of a generation that samples with candidates. Greedy decoding has",
        "the grade `none` for seed and draw.",
        "",
        "In most upstreams a setting decides which distribution the logprobs are of, and no",
        "answer tells it. At start, whence asks for the first token of a short prompt at two",
        "temperatures, and once more with all tokens but the most likely one removed. The logprobs",
        "that change show the distribution. This experiment costs a few tokens, and the log has",
        "its result.",
        "",
        "A constraint turns the grades `raw` and `after_temperature` into `unknown` if the",
        "upstream removes tokens before it computes logprobs. vLLM, SGLang, Ollama and OpenAI do",
        "or may do so. llama.cpp does not.",
        "",
        *_make_head("upstream", [f"`{name}`" for name in _GRADES]),
    ]
    for adapter in adapters.values():
        for prompt, words in ((CHAT, "chat"), ("text", "text")):
            grades = _grade(adapter, ask(prompt))
            lines.append(_make_row(f"{adapter.profile.title}, {words}", grades))
    return lines


def _grade(adapter: Adapter, request: UpstreamRequest) -> list[str]:
    profile = adapter.profile
    description = UpstreamDescription(
        profile.kind,
        "",
        "",
        None,
        profile.max_candidates,
        profile.takes_token_ids,
        claimed_files="" if profile.kind == "openai" else "a name",
    )
    # What the experiment finds stands for itself.
    found = Found(description, profile.distribution or Distribution.RAW)
    observation = adapter.grade(request, found)
    cells = [f"`{getattr(observation, name).name.lower()}`" for name in _GRADES]
    if profile.distribution is None:
        cells[_GRADES.index("distribution")] = _PROBED
    return cells


def _render_options(adapters: dict[str, Adapter], titles: list[str]) -> list[str]:
    lines = [
        "",
        "## Decoding options",
        "",
        "The table names the field that each option is sent as. A request that sets an option",
        "without a field is refused with INVALID_ARGUMENT.",
        "",
        *_make_head("option", titles),
    ]
    for option in DECODING_OPTIONS:
        if option.strategy_name == "beam_search":
            continue
        cells = [_show_option(adapter, option.name) for adapter in adapters.values()]
        lines.append(_make_row(f"`{option.name}`", cells))
    return lines


def _show_option(adapter: Adapter, name: str) -> str:
    profile = adapter.profile
    if name == "constraint":
        languages = sorted(language.value for language in profile.constraints)
        return ", ".join(f"`{language}`" for language in languages) or "-"
    field = profile.options.get(name)
    return f"`{field}`" if field else "-"


def _render_limits(adapters: dict[str, Adapter], titles: list[str]) -> list[str]:
    lines = ["", "## Limits", "", *_make_head("", titles)]
    profiles = [adapter.profile for adapter in adapters.values()]
    lines.append(_make_row("most candidates", [str(p.max_candidates) for p in profiles]))
    lines.append(_make_row("largest seed", [f"2^{p.max_seed.bit_length()} - 1" for p in profiles]))
    lines.append(
        _make_row(
            "smallest temperature",
            [f"{p.min_temperature:g}" if p.min_temperature else "any" for p in profiles],
        )
    )
    lines.append(
        _make_row(
            "logit bias",
            [_show_bias(profile) for profile in profiles],
        )
    )
    lines.append(
        _make_row("prompts of token ids", ["yes" if p.takes_token_ids else "no" for p in profiles])
    )
    lines.append(
        _make_row(
            "arguments of the chat template",
            ["yes" if p.takes_template_arguments else "no" for p in profiles],
        )
    )
    lines.append(
        _make_row(
            "fields of its own API that whence refuses",
            [", ".join(f"`{name}`" for name in sorted(p.reserved)) or "-" for p in profiles],
        )
    )
    return [
        *lines,
        "",
        "No upstream is asked for beam search, which would need scores that none tells, or for a",
        "forced continuation. Both are UNIMPLEMENTED. The reasons against a forced continuation:",
        "",
        *(f"- {profile.title}: {profile.no_forced}." for profile in profiles),
    ]


def _show_bias(profile: Profile) -> str:
    if "logit_bias" not in profile.options:
        return "-"
    return "any" if profile.max_logit_bias is None else f"±{profile.max_logit_bias:g}"


def _make_head(first: str, others: list[str]) -> list[str]:
    return [_make_row(first, others), "|" + " --- |" * (len(others) + 1)]


def _make_row(first: str, others: list[str]) -> str:
    return f"| {' | '.join((first, *others))} |"


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
