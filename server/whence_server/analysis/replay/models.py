"""Loading of the model that a question needs, and its noise, which is measured at first use."""

from collections.abc import Mapping

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


class HeldModel:
    """A model in memory, with its tokenizer.

    Args:
        loaded: the model.
        setup: settings of the process.
    """

    def __init__(self, loaded: LoadedModel, setup: AnalysisSetup) -> None:
        self.loaded = loaded
        self.tokenizer = TextTokenizer(loaded.info.text, loaded.info.vocabulary_size)
        self._noise_file = setup.noise_file
        self._verifier: Verifier | None = None

    def get_verifier(self) -> Verifier:
        """Return the verifier, whose noise is measured if no file has it."""
        if self._verifier is None:
            self._verifier = self._make_verifier()
        return self._verifier

    def _make_verifier(self) -> Verifier:
        info, runner = self.loaded.info, self.loaded.make_runner()
        file = NoiseFile(self._noise_file)
        conditions = describe_conditions(info)
        noise = file.recall(info.weights_digest, conditions)
        if noise is None:
            reader = Reader(runner, info.vocabulary_size, info.batched)
            chooser = Chooser(info.vocabulary_size, self.loaded.model.device)
            noise = measure_noise(reader, chooser, self.tokenizer, info.max_context_length)
            file.keep(info.weights_digest, conditions, noise)
        return Verifier(info, runner, self.tokenizer, noise, conditions)


class Models:
    """Holder of the loaded model, at most one at a time.

    Args:
        setup: model of the server, or the one that was named.
    """

    def __init__(self, setup: AnalysisSetup) -> None:
        self._setup = setup
        self._options: EngineOptions | None = None
        self._files: dict[str, Identity] = {}
        self._held: HeldModel | None = None

    def get_verifier(self, question: Question) -> Verifier:
        """Return the verifier of a record: with its data type and kernels if the setup says so.

        Raises:
            ConfigurationError: the model cannot be loaded.
        """
        return self.get_model(question.identity.environment).get_verifier()

    def get_model(self, environment: Mapping[str, str]) -> HeldModel:
        """Return the model, for a record with this environment; as `get_verifier`."""
        options = self._choose_options(environment)
        if not self._holds(options):
            # The former model's memory is free before the next one is read.
            self._held = None
            self._files = _identify(options)
            self._held = HeldModel(load(options), self._setup)
            self._options = options
        assert self._held is not None  # noqa: S101 - it was just loaded, or was held
        return self._held

    def has_model(self, environment: Mapping[str, str]) -> bool:
        """Return whether the model for a record with this environment is in memory."""
        return self._holds(self._choose_options(environment))

    def _holds(self, options: EngineOptions) -> bool:
        # The files may have changed since they were mapped.
        return (
            self._held is not None
            and options == self._options
            and _identify(options) == self._files
        )

    def _choose_options(self, recorded: Mapping[str, str]) -> EngineOptions:
        options: EngineOptions = self._setup.options
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


def _identify(options: EngineOptions) -> dict[str, Identity]:
    places = weights.find_places(options.model, trust_remote_code=options.trust_remote_code)
    names = places.list_base_weights()
    paths = weights.list_model_paths(places, names, with_code=options.trust_remote_code)
    found = read_identities(paths.values())
    return {str(path): identity for path, identity in found.items()}
