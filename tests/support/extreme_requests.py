"""Requests with every decoding and trace option at, within and beyond its bounds."""

import random
from collections.abc import Sequence

from whence.v1 import generation_pb2 as g
from whence_server.domain import bounds

LARGEST_FLOAT32 = 3.4028234e38
SMALLEST_FLOAT32 = 1e-45
VOCABULARY_SIZE = 416
WORDS = ("The", " fox", "e", " ", "\n", "token", "0")

FLOATS: dict[str, Sequence[float]] = {
    "repetition_penalty": (bounds.MIN_REPETITION_PENALTY, 0.5, 1.0, bounds.MAX_REPETITION_PENALTY),
    "logit_bias": (-bounds.MAX_LOGIT_BIAS, -100.0, SMALLEST_FLOAT32, 100.0, bounds.MAX_LOGIT_BIAS),
    "temperature": (bounds.MIN_TEMPERATURE, 1e-3, 1.0, 3.0, bounds.MAX_TEMPERATURE),
    "top_p": (SMALLEST_FLOAT32, 1e-6, 0.5, 0.9999999, 1.0),
    "min_p": (0.0, SMALLEST_FLOAT32, 0.5, 1.0),
    "typical_p": (SMALLEST_FLOAT32, 0.5, 0.9999999, 1.0),
    "epsilon_cutoff": (0.0, SMALLEST_FLOAT32, 0.5, 0.9999999),
    "eta_cutoff": (0.0, SMALLEST_FLOAT32, 0.5, 0.9999999),
    "length_penalty": (-bounds.MAX_LENGTH_PENALTY, -8.0, 0.0, 1.0, 8.0, bounds.MAX_LENGTH_PENALTY),
}
"""Values at and within the bounds of each field."""
BEYOND = (
    *(0.0, -1.0, 2.0, float("nan"), float("inf"), float("-inf")),
    *(LARGEST_FLOAT32, -LARGEST_FLOAT32, SMALLEST_FLOAT32, -SMALLEST_FLOAT32),
)
"""Values beyond the bounds of most fields."""
SAMPLING = ("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


class Extremes:
    """Source of requests, which are the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def request(self) -> g.GenerateRequest:
        """Return a request of a few tokens, which is invalid with a probability of a quarter."""
        choose = self._random
        beyond = choose.random() < 0.25
        request = g.GenerateRequest(
            tokens=g.TokenInput(
                token_ids=[choose.randrange(VOCABULARY_SIZE) for _ in range(choose.randint(1, 40))]
            ),
            decoding=self._decoding(beyond=beyond),
            trace=g.TraceOptions(
                detail=choose.choice(g.TraceDetail.values()),
                num_candidates=choose.choice((0, 1, 8, 128)),
                prompt=choose.random() < 0.3,
                logprob_token_ids=choose.sample(
                    range(VOCABULARY_SIZE + 20 * beyond), choose.choice((0, 0, 1, 128))
                ),
            ),
        )
        if choose.random() < 0.2:
            request.trace.ClearField("num_candidates")
        return request

    def _decoding(self, *, beyond: bool) -> g.Decoding:
        choose = self._random
        strategy = choose.choice(("greedy", "sample", "sample", "beam_search", "forced"))
        decoding = g.Decoding()
        if strategy == "forced":
            ids = [choose.randrange(VOCABULARY_SIZE) for _ in range(choose.randint(1, 12))]
            decoding.forced.tokens.token_ids.extend(ids)
            if not beyond:
                return decoding
        elif strategy == "greedy":
            decoding.greedy.SetInParent()
        elif strategy == "sample":
            self._sample(decoding, beyond=beyond)
        else:
            self._search(decoding, beyond=beyond)
        self._shared(decoding, beyond=beyond)
        return decoding

    def _sample(self, decoding: g.Decoding, *, beyond: bool) -> None:
        choose, sample = self._random, decoding.sample
        sample.seed = choose.choice((0, 1, 2**64 - 1))
        for name in SAMPLING:
            if choose.random() < 0.5:
                setattr(sample, name, self._float(name, beyond=beyond))
        if choose.random() < 0.5:
            sample.top_k = choose.choice((0, 1, 2, VOCABULARY_SIZE, 2**32 - 1))
        decoding.num_return_sequences = choose.choice((1, 1, 2, 5))

    def _search(self, decoding: g.Decoding, *, beyond: bool) -> None:
        choose, search = self._random, decoding.beam_search
        search.num_beams = choose.choice((2, 3, 8))
        search.early_stopping = choose.choice(g.EarlyStopping.values())
        if choose.random() < 0.7:
            search.length_penalty = self._float("length_penalty", beyond=beyond)
        decoding.num_return_sequences = choose.randint(1, search.num_beams)

    def _shared(self, decoding: g.Decoding, *, beyond: bool) -> None:
        choose = self._random
        decoding.max_new_tokens = choose.choice((1, 2, 8, 20))
        decoding.ignore_eos = choose.random() < 0.5
        if choose.random() < 0.3:
            decoding.min_new_tokens = choose.choice((1, decoding.max_new_tokens))
        if choose.random() < 0.6:
            penalty = self._float("repetition_penalty", beyond=beyond)
            decoding.repetition_penalty = penalty
        if choose.random() < 0.4:
            size = choose.choice((0, 1, 2, bounds.MAX_NO_REPEAT_NGRAM_SIZE))
            decoding.no_repeat_ngram_size = 2**32 - 1 if beyond and choose.random() < 0.3 else size
        if choose.random() < 0.7:
            self._biases(decoding, beyond=beyond)
        if choose.random() < 0.3:
            decoding.bad_words.extend(choose.sample(WORDS, 2))
        if choose.random() < 0.3:
            decoding.stop_token_ids.extend(choose.sample(range(VOCABULARY_SIZE), 40))
        if choose.random() < 0.2 and not decoding.HasField("beam_search"):
            decoding.stop.extend(choose.sample(WORDS, 1))

    def _biases(self, decoding: g.Decoding, *, beyond: bool) -> None:
        choose = self._random
        num_tokens = choose.choice((1, 2, 20) if beyond else (1, 2, 20, VOCABULARY_SIZE))
        for token_id in choose.sample(range(VOCABULARY_SIZE), num_tokens):
            decoding.logit_bias[token_id] = self._float("logit_bias", beyond=beyond)

    def _float(self, name: str, *, beyond: bool) -> float:
        values = BEYOND if beyond and self._random.random() < 0.3 else FLOATS[name]
        return self._random.choice(values)
