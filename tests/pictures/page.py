"""Takes the picture of the page: `make picture`, with a server up on the demo's model.

    python tests/pictures/page.py [--target ADDRESS] [QUESTION] [--step N] [--output FILE]

It asks a question, generates with internals, writes the page, opens it in headless Chromium,
chooses a token, and keeps what is on the screen. Fonts are the machine's: with Inter and JetBrains
Mono (Debian's fonts-inter, fonts-jetbrains-mono) it looks as intended.
"""

import argparse
import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from browser import browser, find_missing_browser, read_console, set_view  # noqa: E402
from PIL import Image  # noqa: E402

from whence import Client  # noqa: E402
from whence.page import make_page, write_page  # noqa: E402
from whence.tokens import Token  # noqa: E402

QUESTION = "What is the capital of France, and what is it known for?"
ANSWER = " Paris"
MAX_BYTES = 300_000


def main() -> int:
    """Takes it; tells what is on it."""
    arguments = _arguments()
    missing = find_missing_browser()
    if missing is not None:
        print(missing, file=sys.stderr)
        return 1
    with TemporaryDirectory() as directory:
        path = Path(directory) / "page.html"
        step = _make_page(path, arguments)
        with browser(Path(directory) / "profile") as driver:
            set_view(driver, arguments.width, arguments.height, dark=arguments.dark, scale=2)
            driver.get(f"{path.as_uri()}#0.{step}")
            picture = _in_few_colors(driver.get_screenshot_as_png())
            said = read_console(driver)
    if said or len(picture) > MAX_BYTES:
        print(*said, f"{len(picture):,} bytes, at most {MAX_BYTES:,}", file=sys.stderr)
        return 1
    arguments.output.write_bytes(picture)
    print(f"{arguments.output}: {len(picture):,} bytes, step {step}")
    return 0


def _in_few_colors(picture: bytes) -> bytes:
    """The same with a palette of 256 colours, in less than half of the bytes."""
    smaller = io.BytesIO()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
    return smaller.getvalue()


def _make_page(path: Path, arguments: argparse.Namespace) -> int:
    """Generates and writes the page; gives the step to choose."""
    with Client(arguments.target) as client:
        generation = client.generate(
            messages=[{"role": "user", "content": arguments.question}],
            detail="internals",
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            repetition_penalty=arguments.repetition_penalty,
            seed=arguments.seed,
            max_new_tokens=arguments.max_new_tokens,
        )
        tokens = list(generation)
        started = generation.started
        if started is None:
            raise SystemExit("nothing was generated")
        for part, why in started.unavailable.items():
            print(f"no {part}: {why}", file=sys.stderr)
        content = make_page(
            started,
            generation.finished,
            [token.step for token in tokens],
            vocabulary=client.vocabulary(started.model),
        )
        write_page(path, content)
    if arguments.step is not None:
        return int(arguments.step)
    for token in tokens:
        if token.text == ANSWER:
            return token.index
    # One that the last layers brought forth, with enough of a context before it and after it.
    third = len(tokens) // 3
    return max(tokens[third : 2 * third + 1], key=_growth).index


def _growth(token: Token) -> float:
    """Return how much likelier the last layer made a token than the first; 0 for a blank."""
    layers = token.internals.layers if token.internals and token.text.strip() else ()
    return layers[-1].share - layers[0].share if layers else 0.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Takes a picture of a generation's page.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--target", help="the server's address; default: $WHENCE_TARGET")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures" / "page.png")
    parser.add_argument(
        "--step",
        type=int,
        help="the token to choose; default: Paris, or one that the last layers formed",
    )
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--repetition-penalty", type=float, default=1.08)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--dark", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
