"""Making of statements: long prompts, whose ids are taken in a piece at a time."""

import pytest
from bundles import make_entries, make_finished, make_started, sign, spell

from whence.proof.leaves import IdsCommitment, commit_to_ids
from whence.proof.verification import verify_bundle
from whence_server.proof.signer import PrivateKey

SIGNER = PrivateKey.generate()
NUM_IDS = 10_000


@pytest.mark.parametrize("count", [1, 7, 1_024, 20_000])
@pytest.mark.parametrize("num_pieces", [0, 3, 30_000])
def test_commitment_in_pieces_is_that_of_the_whole(count: int, num_pieces: int) -> None:
    token_ids = range(2**32 - NUM_IDS, 2**32)
    commitment = IdsCommitment(b"key", token_ids)
    for _ in range(num_pieces):
        commitment.advance(count)
    assert commitment.finish() == commit_to_ids(b"key", token_ids)


@pytest.mark.parametrize("num_steps", [0, 3, 40])
def test_statement_about_a_long_prompt_takes_its_ids_in_with_the_entries(
    num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_left: list[int] = []
    finish = IdsCommitment.finish

    def count_and_finish(commitment: IdsCommitment) -> str:
        num_left.append(NUM_IDS - commitment._num_done)
        return finish(commitment)

    monkeypatch.setattr(IdsCommitment, "finish", count_and_finish)
    started = make_started()
    started.prompt_token_ids[:] = range(50_000, 50_000 + NUM_IDS)
    started.num_prompt_tokens = NUM_IDS
    entries = make_entries(num_steps, started)
    finished = make_finished(num_steps)
    finished.num_prompt_tokens = NUM_IDS
    statement = sign(entries, finished, SIGNER)
    # What the end has to do is bounded by the prompt less 1,024 ids for each entry.
    assert num_left == [max(0, NUM_IDS - 1_024 * num_steps)]
    # Who checks computes the commitment from the start, in one piece.
    report = verify_bundle(spell(statement, entries), [SIGNER.public.pem])
    assert report.verified, report.checks
