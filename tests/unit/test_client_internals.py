"""A token's internals: typed views, objects of `--json`, output on the terminal."""

import pytest
from client_fake_server import VOCABULARY, step
from internals_steps import METHOD, PROMPT_IDS, internals_journal

from whence.cli.internals import format_internals, format_missing
from whence.cli.json_lines import describe_event, describe_token
from whence.cli.one_step import format_step
from whence.generation import GenerationState, TokenReader
from whence.v1.generation_pb2 import GenerationEvent, GenerationStarted
from whence.v1.step_pb2 import Candidates, Internals, Step
from whence.vocabulary import Vocabulary

TEXTS = Vocabulary(VOCABULARY)


def reader(prompt_ids=PROMPT_IDS) -> TokenReader:
    started = GenerationStarted(prompt_token_ids=prompt_ids, processor_names=["temperature"])
    return TokenReader(started, lambda _model, _digest, token_id: TEXTS.text_of(token_id))


def recorded() -> list[Step]:
    return [event.steps.steps[0] for event in internals_journal()[1:-1]]


def test_sources_have_the_texts_of_the_prompt_and_of_the_tokens_before():
    tokens = reader().read(recorded())
    last = tokens[-1]
    assert last.context_token_ids == (*PROMPT_IDS, 1, 2, 3, 6)
    last.step.internals.source_positions[:] = [5, 1]
    first, second = last.internals.sources
    assert (first.position, first.share, first.token_id, first.text) == (5, 0.5, 3, "!")
    assert (second.position, second.share, second.text) == (1, 0.125, "Hello")
    assert last.internals.self_share == 0.25
    assert last.text_at(6) == " caf\u00e9"
    assert last.text_at(8) == last.text_at(2**32 - 1) == ""


def test_sequences_have_contexts_of_their_own():
    steps = [step(0, 1, "Hello"), step(0, 2, " world", sequence_index=1)]
    steps += [step(1, 3, "!"), step(1, 3, "!", sequence_index=1)]
    tokens = reader((7,)).read(steps)
    assert [token.context_token_ids for token in tokens] == [(7,), (7,), (7, 1), (7, 2)]


def test_a_step_that_is_read_twice_changes_nothing():
    steps, reading = recorded(), reader()
    once = reading.read(steps)
    again = reading.read(steps[:3])
    assert again == once[:3]
    assert again[2].context_token_ids == once[2].context_token_ids == (*PROMPT_IDS, 1, 2)


def test_layers_name_their_leader():
    chosen_beyond = step(0, 3, "!")
    chosen_beyond.candidates.CopyFrom(Candidates(token_ids=[1, 2], logprobs=[-1, -2]))
    chosen_beyond.internals.CopyFrom(
        Internals(layer_shares=[0.125, 0.5], layer_leaders=[1, 2]),
    )
    (token,) = reader().read([chosen_beyond])
    layers = token.internals.layers
    assert [(layer.index, layer.share) for layer in layers] == [(0, 0.125), (1, 0.5)]
    assert [layer.leader_token_id for layer in layers] == [2, 3]
    assert [layer.leader_text for layer in layers] == [" world", "!"]
    assert token.internals.sources == ()
    assert token.internals.self_share is None


def test_what_is_not_on_record_is_absent():
    (token,) = reader().read([step(0, 1, "Hello")])
    assert token.internals is None
    assert "internals" not in describe_token(token)
    (told,) = format_internals(token, color=True)
    assert told.strip() == "no internals are recorded"


def test_without_ids_positions_and_shares_are_left():
    bare = recorded()[-1]
    bare.ClearField("token_id")
    bare.candidates.ClearField("token_ids")
    bare.candidates.ClearField("logprobs")
    bare.candidates.ClearField("sampling_logprobs")
    (token,) = reader(()).read([bare])
    assert token.context_token_ids == ()
    assert [(source.position, source.text) for source in token.internals.sources] == [
        (1, ""),
        (0, ""),
    ]
    assert {layer.leader_token_id for layer in token.internals.layers} == {None}
    assert describe_token(token)["internals"]["sources"][0] == {"position": 1, "share": 0.5}
    assert describe_token(token)["internals"]["layers"][0] == {"index": 0, "share": 0.25}
    assert any("50.0%" in line for line in format_internals(token, color=True))


def test_a_prompts_own_tokens_have_no_context():
    (token,) = reader().read([Step(index=2, token_id=3)], prompt=True)
    assert token.context_token_ids == ()


def test_the_json_form_has_every_field():
    token = reader().read(recorded())[0]
    assert describe_token(token)["internals"] == {
        "sources": [
            {"position": 1, "token_id": 1, "text": "Hello", "share": 0.5},
            {"position": 0, "token_id": 0, "text": "<s>", "share": 0.125},
        ],
        "self_share": 0.25,
        "layers": [
            {"index": 0, "share": 0.25, "leader_token_id": 5, "leader_text": "<0xC3>"},
            {"index": 1, "share": 0.5, "leader_token_id": 1, "leader_text": "Hello"},
            {"index": 2, "share": 0.75, "leader_token_id": 1, "leader_text": "Hello"},
        ],
    }
    every = {field.name for field in Internals.DESCRIPTOR.fields}
    shown = {"source_positions", "source_shares", "self_share", "layer_shares", "layer_leaders"}
    assert every == {*shown, "sink_share"}, (
        "a field of the contract that the objects do not have yet"
    )


def with_sink() -> Step:
    """Return a step whose first position is a sink, and no source."""
    made = recorded()[0]
    made.internals.sink_share = 0.125
    del made.internals.source_positions[1], made.internals.source_shares[1]
    return made


def test_a_sink_has_a_share_and_is_no_source():
    (token,) = reader().read([with_sink()])
    assert token.internals.sink_share == 0.125
    assert [source.position for source in token.internals.sources] == [1]
    described = describe_token(token)["internals"]
    assert described["sink_share"] == 0.125
    assert [source["position"] for source in described["sources"]] == [1]
    (other,) = reader().read(recorded()[:1])
    assert other.internals.sink_share is None
    assert "sink_share" not in describe_token(other)["internals"]


def test_the_terminal_shows_a_sink_apart_from_all_others():
    (token,) = reader().read([with_sink()])
    left = [line[:40].split() for line in format_internals(token, color=False)]
    assert left[1:] == [
        ["1", '"Hello"', "50.0%"],
        ["the", "newest", "25.0%"],
        ["sink", "12.5%"],
        ["all", "others", "12.5%"],
    ]


def test_the_start_says_the_method_and_what_is_missing():
    started = GenerationStarted(source_method=METHOD, unavailable={"layers": "post-norm"})
    state = GenerationState("g", lambda *_: "")
    state._observe(event := GenerationEvent(started=started))
    (said,) = describe_event(event, state)
    assert said["source_method"] == METHOD
    assert said["unavailable"] == {"layers": "post-norm"}
    assert [line.strip() for line in format_missing(started.unavailable)] == [
        "no layers: post-norm"
    ]


def test_the_terminal_shows_sources_beside_layers():
    token = reader().read(recorded())[0]
    assert [line.split() for line in format_internals(token, color=False)] == [
        ["position", "drew", "on", "share", "layer", "leading", "itself"],
        ["1", '"Hello"', "50.0%", "0", '"<0xC3>"', "25.0%"],
        ["0", '"<s>"', "12.5%", "1", '"Hello"', "50.0%", "<"],
        ["the", "newest", "25.0%", "2", '"Hello"', "75.0%", "<"],
        ["all", "others", "12.5%"],
    ]


def layer_lines(leaders: list[int]) -> list[list[str]]:
    """Return the table of layers, with the given leaders as indices into the candidates."""
    step = recorded()[0]
    step.internals.ClearField("self_share")
    step.internals.layer_leaders[:] = leaders
    step.internals.layer_shares[:] = [(layer + 1) / 100 for layer in range(len(leaders))]
    (token,) = reader().read([step])
    return [line.split() for line in format_internals(token, color=False)]


def test_many_layers_are_shown_by_where_the_leader_changes():
    leaders = [1] * 12 + [0] + [1] * 2 + [0] * 15
    assert layer_lines(leaders) == [
        ["layer", "leading", "itself"],
        ["0-11", '"<0xC3>"', "12.0%"],
        ["12", '"Hello"', "13.0%", "<"],
        ["13-14", '"<0xC3>"', "15.0%"],
        ["15-29", '"Hello"', "30.0%", "<"],
    ]
    assert layer_lines([0] * 30)[1:] == [["0-29", '"Hello"', "30.0%", "<"]]


def test_few_layers_have_a_row_each():
    assert [line[0] for line in layer_lines([0] * 12)[1:]] == [str(layer) for layer in range(12)]


def test_colour_shows_the_context_by_share():
    token = reader().read(recorded())[1]
    context, *table = format_internals(token, color=True)
    assert table == list(format_internals(token, color=False))
    assert context.count("\x1b[38;5;") == 3, "two sources and the newest"
    deepest = "\x1b[38;5;231;48;5;19mHello\x1b[39;49m"
    assert deepest in context
    assert " world" in context


@pytest.mark.parametrize(("whole", "shortened"), [(False, True), (True, False)])
def test_a_long_context_is_shortened_where_nothing_was_drawn_from_it(whole, shortened):
    far = recorded()[0]
    far.internals.source_positions[:] = [40, 1]
    (token,) = reader((2,) * 80).read([far])
    context = next(iter(format_internals(token, color=True, whole=whole)))
    assert ("tokens…" in context) == shortened
    assert context.count("world") == (80 if whole else 5 + 7 + 4)


def test_control_characters_of_a_context_do_not_reach_the_terminal():
    (token,) = reader((4, 4)).read([recorded()[0]])
    context = next(iter(format_internals(token, color=True)))
    assert "\x1b[31m" not in context
    assert "\\x1b[31m" in context


def test_a_step_is_shown_with_all_of_its_record():
    token = reader().read(recorded())[3]
    told = "\n".join(format_step(token, color=False))
    for part in ("removed", "temperature", "noise 0.125", "drew on", "batch of 4", "context of 6"):
        assert part in told, part


def test_tokens_without_a_text_are_shown_by_their_ids():
    started = GenerationStarted(prompt_token_ids=PROMPT_IDS, processor_names=["temperature"])
    tokens = TokenReader(started, lambda _model, _digest, _token_id: "")
    for token in tokens.read(recorded()):
        # The model is no longer served, and nobody has its vocabulary.
        lines = list(format_step(token, color=False))
        assert not any('""' in line for line in lines), lines
        for candidate in token.candidates:
            assert any(f" #{candidate.token_id} " in line for line in lines[3:])


def test_a_step_has_the_line_that_its_span_has():
    started = GenerationStarted()
    started.effective_decoding.greedy.SetInParent()
    tokens = TokenReader(started, lambda _model, _digest, token_id: TEXTS.text_of(token_id))
    plain = Step(token_id=1, logprob=-0.25, rank=0)
    (token,), (read,) = tokens.read([plain]), tokens.read([plain], prompt=True)
    assert token.summary == '"Hello" 77.9%, taken greedily, the likeliest'
    assert read.summary == '"Hello" 77.9%, read in the prompt, the likeliest'
    assert f"         {token.summary}" in list(format_step(token, color=False))
