"""Loading of the model that a record needs, and its noise, which is measured at first use."""

from whence_server.analysis.question import Question
from whence_server.analysis.replay.noise import measure_noise
from whence_server.analysis.replay.noise_file import NoiseFile, describe_conditions
from whence_server.analysis.replay.passes import Reader
from whence_server.analysis.replay.verifier import Verifier
from whence_server.analysis.setup import AnalysisSetup
from whence_server.domain.model import StepKernels
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.digest_cache import Identity, read_identities
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.text.tokenizer import TextTokenizer

_DTYPES = frozenset({"float32", "bfloat16", "float16"})


class Models:
    """Holder of the loaded model, at most one at a time.

    Args:
        setup: model of the server, or the one that was named.
    """

    def __init__(self, setup: AnalysisSetup) -> None:
        self._setup = setup
        self._options: EngineOptions | None = None
        self._files: dict[str, Identity] = {}
        self._verifier: Verifier | None = None

    def get_verifier(self, question: Question) -> Verifier:
        """Return the verifier of a record: with its data type and kernels if the setup says so.

        Raises:
            ConfigurationError: the model cannot be loaded.
        """
        options = self._choose_options(question)
        if self._verifier is None or options != self._options or self._have_files_changed(options):
            self._verifier = None
            self._verifier = self._load(options)
            self._options = options
        return self._verifier

    def _choose_options(self, question: Question) -> EngineOptions:
        options: EngineOptions = self._setup.options
        recorded = question.identity.environment
        dtype = recorded.get("dtype", "")
        packed = recorded.get("step_kernels", "") == "packed"
        if not self._setup.follows_record:
            dtype, packed = "", False
        return options._replace(
            dtype=dtype if dtype in _DTYPES else options.dtype,
            step_kernels=StepKernels.PACKED if packed else options.step_kernels,
            num_threads=self._setup.num_threads,
            prefix_cache_tokens=0,
            maps_weights=True,
        )

    def _load(self, options: EngineOptions) -> Verifier:
        self._files = _identify(options)
        loaded: LoadedModel = load(options)
        info, runner = loaded.info, loaded.make_runner()
        tokenizer = TextTokenizer(info.text, info.vocabulary_size)
        file = NoiseFile(self._setup.noise_file)
        conditions = describe_conditions(info)
        noise = file.recall(info.weights_digest, conditions)
        if noise is None:
            reader = Reader(runner, info.vocabulary_size, info.batched)
            chooser = Chooser(info.vocabulary_size, loaded.model.device)
            noise = measure_noise(reader, chooser, tokenizer, info.max_context_length)
            file.keep(info.weights_digest, conditions, noise)
        return Verifier(info, runner, tokenizer, noise, conditions)

    def _have_files_changed(self, options: EngineOptions) -> bool:
        """Return whether files have changed since they were mapped."""
        return _identify(options) != self._files


def _identify(options: EngineOptions) -> dict[str, Identity]:
    places = weights.find_places(options.model, trust_remote_code=options.trust_remote_code)
    names = places.list_base_weights()
    paths = weights.list_model_paths(places, names, with_code=options.trust_remote_code)
    found = read_identities(paths.values())
    return {str(path): identity for path, identity in found.items()}
