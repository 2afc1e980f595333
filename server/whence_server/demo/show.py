"""The show on a real model: an answer, the reasons for its tokens, and two draws that part."""

from collections.abc import Sequence
from pathlib import Path

from whence import Token
from whence.aio import AsyncClient
from whence.summary import quote
from whence_server.demo.parting import format_parting
from whence_server.demo.real_model import NAME, read_digests
from whence_server.demo.stage import Stage, set_stage

QUESTION = "What is the capital of France?"
ANSWER = "Paris"
SEEDS = (2, 13)
"""Seeds with which the answers are true, begin alike, and part."""
_SAMPLED = ("--chat", "--temperature", "0.8", "--top-p", "0.95", "--max-new-tokens", "24")
_NEXT = f"""
What to try next
  make serve                             keep a server up on this model; its page is at
                                         http://127.0.0.1:8000/; then elsewhere:
  .venv/bin/whence generate "{QUESTION}" --chat --internals --html page.html
                                         the same as a page: choose a token
  .venv/bin/whence generate "Name three colours." --chat --temperature 0.8 --seed 7 --candidates
  .venv/bin/whence generations list      everything that was generated is on record
  make demo-training                     train a model on record, and explain it by its training
  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 \\
  WHENCE_TRACE_URL='http://localhost:16686/trace/{{trace_id}}' make demo
                                         the same, with its spans in your own Jaeger, and a link
                                         to each trace
"""


async def show(model: Path, trace_url: str = "") -> None:
    """Run the show, from the start of the server to its end.

    Args:
        model: directory of the model.
        trace_url: template of links to traces, if the user has a collector; "" for no links.

    Raises:
        SystemExit: a command failed; the status is the command's.
    """
    print(f"{NAME} in {model}")
    for name, digest in read_digests(model).items():
        print(f"  SHA-256 {digest}  {name}")
    async with set_stage(model, NAME, trace_url) as stage, AsyncClient(stage.target) as client:
        await client.vocabulary()  # for the texts of tokens
        print("\nA question, and each token of the answer with the likeliest others")
        reasons = ("--candidates", "--num-candidates", "4", "--detail", "internals")
        tokens = await _generate(stage, client, QUESTION, "--chat", "--greedy", *reasons)
        await _show_why(stage, client, tokens)
        await _show_parting(stage, client)
    print(_NEXT)


async def _show_why(stage: Stage, client: AsyncClient, tokens: Sequence[Token]) -> None:
    token = next((token for token in tokens if ANSWER in token.text), tokens[-1])
    print(f"\nWhy {quote(token.token_text)}? Everything on record about this token")
    generation_id = await _find_newest(client)
    await stage.run("generations", "show", generation_id, "--step", str(token.index))


async def _show_parting(stage: Stage, client: AsyncClient) -> None:
    print("\nThe same question, drawn at random with two seeds")
    one, other = [
        await _generate(stage, client, QUESTION, *_SAMPLED, "--seed", str(seed)) for seed in SEEDS
    ]
    print()
    for line in format_parting(one, other, (f"seed {SEEDS[0]}", f"seed {SEEDS[1]}")):
        print(line)


async def _generate(
    stage: Stage, client: AsyncClient, prompt: str, *options: str
) -> Sequence[Token]:
    """Run `whence generate`, and return the tokens that are on record."""
    await stage.run("generate", prompt, *options)
    return [token async for token in client.generations.steps(await _find_newest(client))]


async def _find_newest(client: AsyncClient) -> str:
    async for summary in client.generations.list(page_size=1):
        return summary.generation_id
    raise LookupError("no generation is on record")
