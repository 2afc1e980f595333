"""The whole story of a proof: train, serve, generate, export; then an auditor, and a liar.

The operator has full access to the server: its store, its signing key and the key of its log. It
has neither the trainer's key nor the witness's.

    manipulation                                        found by
    --------------------------------------------------  -------------------------------------------
    other weights served than those that are claimed    computing again: logprobs
    other weights served, with their own digests        `verify-bundle --training`: other weights
    a token changed in the store                        `verify`: the hash chain
    a token changed, and the chain made anew            `verify-bundle`: not what was signed
    a token changed, everything made and signed anew    `verify --checkpoint`: other entries
    the same, shown as a bundle                         `verify-bundle --witness`: not cosigned
    the newest generations cut off                      `verify --checkpoint`: entries are missing
    a generation denied, another one in its place       `verify --checkpoint` with its old bundle
    a made-up generation put between earlier ones       the witness refuses the log
    a made-up generation added as the newest one        computing again: logprobs
    another seed claimed                                computing again: noise of the draws
    a hidden system prompt                              computing again: logprobs
    the signing key exchanged                           `verify-bundle --key`: no valid signature
    the log begun anew with another key                 the witness refuses the log
    a signed generation kept out of the log             `verify-bundle --log-key`: no proof
    an entry left out of a bundle                       `verify-bundle`: number of entries
    a document that the training did not read           `verify-bundle --document`: not in the set

Every check passes on what the server wrote. Where a column of `LIES` says so, a weaker check
passes on the manipulated record, too: it shows what the stronger one is needed for.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw
import pytest
import torch
from engine_harness import loaded_model
from proof_auditor import Auditor, Shown
from proof_operator import forge
from proof_story import Story, make_story
from replaying import generate, save_rounded
from whence_command import run_whence

from whence.v1.step_pb2 import Step
from whence.v1.verification_pb2 import GenerationRecord
from whence_server.cli import main as server_main
from whence_server.domain.entries import EntryKind
from whence_server.journal.codec import encode_step
from whence_server.proof.key_files import write_private
from whence_server.proof.signer import PrivateKey
from whence_server.rpc.verification_record import read_decoding
from whence_server.text.tokenizer import TextTokenizer
from whence_server.training.attest.signatures import RECORD_SIGNATURE

PLACE = 5
"""Index of the step that a manipulation changes."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    before = torch.get_num_threads()
    yield make_story(tmp_path_factory.mktemp("story"))
    torch.set_num_threads(before)


def test_auditor_with_nothing_but_files_finds_it_true(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    files, log = story.files, story.auditor.log
    done = run_whence(
        *("verify-bundle", str(files / f"{story.ids[0]}.json")),
        *("--key", str(files / "server.pub"), "--training-key", str(files / "trainer.pub")),
        *("--training", str(files / RECORD_SIGNATURE)),
        *("--document", str(files / "document.txt"), str(files / "proof.json")),
        *("--log-key", log.log, "--witness", log.witnesses[0]),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *checks, verdict = done.stdout.splitlines()
    assert verdict == "verified"
    found = [line.split()[1] for line in checks if line.startswith("ok ")]
    names = ["format", "signature", "record", "entries", "log", "training", "document"]
    assert [name for name in found if name in names] == names
    again = ["verify-generation", str(files / f"{story.ids[0]}.json"), "--model", str(story.model)]
    again += ["--key", str(files / "server.pub"), "--threads", "1", "--cache", str(files)]
    assert server_main(again) == 0
    assert "verdict             verified" in capsys.readouterr().out


def test_record_that_is_written_anew_without_a_change_passes_every_check(
    story: Story, tmp_path: Path
) -> None:
    """Checks do not find the program of the operator: below they find its manipulations."""
    shown = story.operator.write(tmp_path / "store", story.open_all())
    for name, check in CHECKS.items():
        assert check(story.auditor, shown, story.ids[0]) == "", name


# ---- lies about what is computed, when it is computed: the log and the witness take them ----


def swap_weights(story: Story, folder: Path) -> tuple[Shown, str]:
    """Serve weights of four bits, and claim the trained ones."""
    record = forge(story.open(0))
    loaded = loaded_model(save_rounded(story.model, folder / "story-rounded", "4 bits"))
    prompt = list(record.started.prompt_token_ids)
    ((made, _),) = generate(loaded, [(prompt, read_decoding(record))])
    info = loaded.info
    text = TextTokenizer(info.text, info.vocabulary_size).make_sequence_text()
    del record.steps[:]
    for step in made:
        piece = text.push(step.decision.token_id, last=step is made[-1])
        record.steps.append(Step.FromString(encode_step(step._replace(text=piece.text))))
    (result,) = record.finished.sequences
    result.token_ids[:] = [step.token_id for step in record.steps]
    result.text = text.text
    return add(story, folder, record)


def claim_own_digests(story: Story, folder: Path) -> tuple[Shown, str]:
    """Name other weights, and still the training of those that were published."""
    record = forge(story.open(0))
    record.started.model_digest = "ab" * 32
    record.started.environment.weights_digest = "cd" * 32
    return add(story, folder, record)


def add_made_up(story: Story, folder: Path) -> tuple[Shown, str]:
    return add(story, folder, make_up(story.open(0)))


def call_branch(story: Story, folder: Path) -> tuple[Shown, str]:
    """Call made-up tokens the given ones of a branch, of a parent that never was."""
    record = make_up(story.open(0))
    fork = record.started.fork
    fork.parent_generation_id, fork.num_forced_steps = str(uuid.uuid4()), 2**32 - 1
    return add(story, folder, record)


def claim_seed(story: Story, folder: Path) -> tuple[Shown, str]:
    record = forge(story.open(0))
    record.started.effective_decoding.sample.seed += 1
    return add(story, folder, record)


def hide_prompt(story: Story, folder: Path) -> tuple[Shown, str]:
    """Claim the prompt of one generation for another, whose prompt has more before it."""
    record, other = forge(story.open(1)), story.open(0)
    record.started.prompt = other.started.prompt
    record.started.prompt_token_ids[:] = other.started.prompt_token_ids
    record.started.num_prompt_tokens = other.started.num_prompt_tokens
    record.finished.num_prompt_tokens = other.finished.num_prompt_tokens
    return add(story, folder, record)


def keep_out_of_log(story: Story, folder: Path) -> tuple[Shown, str]:
    record = forge(story.open(0))
    shown = story.operator.extend(folder / "store", record, in_log=False)
    return shown, record.started.generation_id


# ---- lies about what was on record before ----


def change_in_place(story: Story, folder: Path) -> tuple[Shown, str]:
    store = story.operator.copy(folder / "store")
    database = apsw.Connection(str(store / "journal.db"))
    steps = f"FROM entries WHERE kind = {EntryKind.STEP:d} ORDER BY position LIMIT 1"
    ((position, payload),) = database.execute(f"SELECT position, payload {steps}").fetchall()
    step = Step.FromString(payload)
    step.token_id += 1
    changed = (step.SerializeToString(), position)
    database.execute("UPDATE entries SET payload = ? WHERE position = ?", changed)
    database.close()
    return story.shown._replace(store=store), story.ids[0]


def change_and_keep_statement(story: Story, folder: Path) -> tuple[Shown, str]:
    changed, *others = story.open_all()
    change_token(changed)
    return rewrite(story, folder, [changed, *others])


def change_and_sign(story: Story, folder: Path) -> tuple[Shown, str]:
    first, *others = story.open_all()
    changed = forge(first, is_new=False)
    change_token(changed)
    return rewrite(story, folder, [changed, *others])


def cut_off(story: Story, folder: Path) -> tuple[Shown, str]:
    return rewrite(story, folder, story.open_all()[:-1])


def deny(story: Story, folder: Path) -> tuple[Shown, str]:
    first, denied, *others = story.open_all()
    return rewrite(story, folder, [first, make_up(denied), *others])


def insert_made_up(story: Story, folder: Path) -> tuple[Shown, str]:
    first, *others = story.open_all()
    return rewrite(story, folder, [first, make_up(first), *others])


def exchange_key(story: Story, folder: Path) -> tuple[Shown, str]:
    write_private(folder / "key.pem", PrivateKey.generate().encode())
    records = [forge(record, is_new=False) for record in story.open_all()]
    return rewrite(story, folder, records, signing_key=folder / "key.pem")


def exchange_log_key(story: Story, folder: Path) -> tuple[Shown, str]:
    return rewrite(story, folder, story.open_all(), log_key=folder / "log.pem")


# ---- lies about what a file shows ----


def leave_entry_out(story: Story, _: Path) -> tuple[Shown, str]:
    generation_id = story.ids[0]
    bundle = json.loads(story.shown.bundles[generation_id])
    del bundle["leaves"][PLACE]
    bundles = {generation_id: json.dumps(bundle).encode()}
    return story.shown._replace(bundles=bundles), generation_id


def claim_document(story: Story, _: Path) -> tuple[Shown, str]:
    return story.shown._replace(document=b"the model was never shown this"), story.ids[0]


def change_token(record: GenerationRecord) -> None:
    """Replace a token by a runner-up."""
    step = record.steps[PLACE]
    step.token_id = next(it for it in step.candidates.token_ids if it != step.token_id)
    record.finished.sequences[0].token_ids[PLACE] = step.token_id


def make_up(record: GenerationRecord) -> GenerationRecord:
    """Return a generation that nobody computed: each token is the next one of another."""
    made = forge(record)
    tokens = [step.token_id for step in made.steps]
    tokens = tokens[1:] + tokens[:1]
    for step, token_id in zip(made.steps, tokens, strict=True):
        step.token_id = token_id
    made.finished.sequences[0].token_ids[:] = tokens
    return made


def add(story: Story, folder: Path, record: GenerationRecord) -> tuple[Shown, str]:
    shown = story.operator.extend(folder / "store", record)
    return shown, record.started.generation_id


def rewrite(
    story: Story, folder: Path, records: Sequence[GenerationRecord], **keys: Path
) -> tuple[Shown, str]:
    return story.operator.write(folder / "store", records, **keys), story.ids[0]


CHECKS: dict[str, Callable[[Auditor, Shown, str], str]] = {
    "bundle": Auditor.check_bundle,
    "replay": Auditor.compute_again,
    "store": Auditor.verify_store,
    "checkpoint": Auditor.compare_with_checkpoint,
    "old bundle": Auditor.compare_with_bundle,
    "witness": Auditor.ask_witness,
}


class Lie(NamedTuple):
    """One manipulation, the check that finds it, and what the check says.

    Attributes:
        make: makes it; returns what the operator shows, and the generation to look at.
        found_by: name in `CHECKS`.
        words: part of what the check says.
        missed_by: names of checks that find nothing.
    """

    make: Callable[[Story, Path], tuple[Shown, str]]
    found_by: str
    words: str
    missed_by: tuple[str, ...] = ()


NOT_REPLAY = ("bundle", "store", "checkpoint", "old bundle", "witness")
LIES = {
    "other weights than claimed": Lie(swap_weights, "replay", "logprob of", NOT_REPLAY),
    "other weights by their digests": Lie(
        claim_own_digests, "bundle", "training: the signed training made other weights", ("store",)
    ),
    "token changed": Lie(change_in_place, "store", "hash does not follow from its content"),
    "token changed in a new chain": Lie(
        change_and_keep_statement, "bundle", "record: the entries are not those that were signed"
    ),
    "token changed and all signed anew": Lie(
        change_and_sign,
        "checkpoint",
        "the first 4 entries are others than those of the checkpoint",
        ("store",),
    ),
    "token changed, as a bundle": Lie(
        change_and_sign, "bundle", "log: 0 of the named witnesses have cosigned", ("store",)
    ),
    "newest cut off": Lie(
        cut_off, "checkpoint", "the log had 4 entries, and 3 are left", ("store", "replay")
    ),
    "generation denied": Lie(
        deny,
        "old bundle",
        "the first 4 entries are others than those of the checkpoint",
        ("store",),
    ),
    "made-up one put between": Lie(
        insert_made_up,
        "witness",
        "HTTP 422: the proof does not show that the log only grew",
        ("store",),
    ),
    "made-up one added": Lie(add_made_up, "replay", "logprob of", NOT_REPLAY),
    "made-up one as a branch of nothing": Lie(
        call_branch, "replay", "steps were given, and max_new_tokens is", NOT_REPLAY
    ),
    "another seed": Lie(claim_seed, "replay", "noise of the draw", NOT_REPLAY),
    "hidden system prompt": Lie(hide_prompt, "replay", "logprob of", NOT_REPLAY),
    "signing key exchanged": Lie(
        exchange_key, "bundle", "signature: the statement has no valid signature", ("store",)
    ),
    "log key exchanged": Lie(
        exchange_log_key, "witness", "HTTP 403: no signature is of a key of this log", ("store",)
    ),
    "kept out of the log": Lie(
        keep_out_of_log, "bundle", "log: the bundle has no proof", ("checkpoint", "witness")
    ),
    "entry left out": Lie(leave_entry_out, "bundle", "record: the statement covers 17 entries"),
    "document not read": Lie(claim_document, "bundle", "document: the document is not in"),
}


@pytest.mark.parametrize("name", LIES)
def test_manipulation_is_found(story: Story, name: str, tmp_path: Path) -> None:
    lie, auditor = LIES[name], story.auditor
    assert CHECKS[lie.found_by](auditor, story.shown, story.ids[0]) == ""
    shown, generation_id = lie.make(story, tmp_path)
    assert lie.words in CHECKS[lie.found_by](auditor, shown, generation_id)
    for other in lie.missed_by:
        assert CHECKS[other](auditor, shown, generation_id) == "", other
