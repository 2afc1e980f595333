"""ModelService: the served model and its vocabulary."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from whence.v1 import model_pb2
from whence_server.domain.model import AdapterInfo, FileDigest, ModelInfo, NamedAdapter
from whence_server.journal.observation_codec import convert_weights_origin, find_upstream
from whence_server.journal.vocabularies import MAX_POSITION, Vocabularies
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.serving import Serving
from whence_server.text.chat import list_templates

SERVICE = "whence.v1.ModelService"

# About 64 KiB in one message.
_TOKENS_A_MESSAGE = 8_192


class ModelServicer:
    """Servicer for the model's properties, which the engine reports at load."""

    def __init__(self, serving: Serving, vocabularies: Vocabularies) -> None:
        self._serving = serving
        self._vocabularies = vocabularies

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [
            Method("ListModels", model_pb2.ListModelsRequest, unary=self.list_models),
            Method("GetModel", model_pb2.GetModelRequest, unary=self.get_model),
            Method("GetVocabulary", model_pb2.GetVocabularyRequest, stream=self.get_vocabulary),
        ]

    async def list_models(self, request: model_pb2.ListModelsRequest, call: Call) -> bytes:  # noqa: ARG002 - the method's form
        """Return the server's model, loading, ready or failed; none if the server only records."""
        models = [self._make_model_message()] if self._serving.has_model else []
        return model_pb2.ListModelsResponse(models=models).SerializeToString()

    async def get_model(self, request: model_pb2.GetModelRequest, call: Call) -> bytes:  # noqa: ARG002 - the method's form
        """Return the model with the requested name; "" requests the served one."""
        self._serving.check_model(request.model)
        return model_pb2.GetModelResponse(model=self._make_model_message()).SerializeToString()

    async def get_vocabulary(
        self,
        request: model_pb2.GetVocabularyRequest,
        call: Call,  # noqa: ARG002 - the method's form
    ) -> AsyncGenerator[bytes, None]:
        """Stream the bytes of every token id, in order."""
        vocabulary = await self._find_kept(request.tokenizer_digest)
        if vocabulary is None:
            self._serving.check_model(request.model)
            if self._serving.model is None:
                raise self._serving.make_missing_error()
            if self._serving.tokenizer is None:
                return  # an upstream whose vocabulary is not known has an empty one
            vocabulary = self._serving.tokenizer.list_vocabulary()
        for first in range(0, len(vocabulary), _TOKENS_A_MESSAGE):
            tokens = vocabulary[first : first + _TOKENS_A_MESSAGE]
            yield model_pb2.GetVocabularyResponse(
                first_token_id=first, tokens=tokens
            ).SerializeToString()

    async def _find_kept(self, tokenizer_digest: str) -> Sequence[bytes] | None:
        """Return the vocabulary of the served tokenizer or of another one; None if none is kept."""
        if not tokenizer_digest:
            return None
        served, tokenizer = self._serving.model, self._serving.tokenizer
        if served and tokenizer and served.tokenizer_digest == tokenizer_digest:
            return tokenizer.list_vocabulary()
        kept = await self._vocabularies.find(tokenizer_digest, MAX_POSITION)
        return None if kept is None else kept.tokens

    def _make_model_message(self) -> model_pb2.Model:
        serving = self._serving
        if serving.model is not None:
            return make_model_message(serving.model)
        serving.note_early_call()
        if serving.failure is None:
            return model_pb2.Model(model=serving.model_name, state=model_pb2.MODEL_STATE_LOADING)
        return model_pb2.Model(
            model=serving.model_name,
            state=model_pb2.MODEL_STATE_FAILED,
            failure=serving.failure.detail,
        )


def make_model_message(info: ModelInfo) -> model_pb2.Model:
    """Convert a loaded model to its message."""
    run = info.training_run
    return model_pb2.Model(
        model=info.name,
        state=model_pb2.MODEL_STATE_READY,
        architecture=info.architecture,
        num_parameters=info.num_parameters,
        num_layers=info.num_layers,
        vocabulary_size=info.vocabulary_size,
        max_context_length=info.max_context_length,
        dtype=info.environment.dtype,
        device=info.environment.device,
        model_digest=info.model_digest,
        tokenizer_digest=info.tokenizer_digest,
        files=[_make_file_digest(file) for file in info.files],
        weights_digest=info.weights_digest,
        loaded_files=info.loaded_files,
        batched=info.batched,
        training_run_id="" if run is None else run.training_run_id,
        training_step=None if run is None else run.step,
        chat_templates=sorted(list_templates(info.text.chat_template)),
        adapter=None if info.adapter is None else _make_identity(info.adapter),
        adapters=[_make_adapter_message(adapter) for adapter in info.adapters],
        prefix_cache_tokens=info.prefix_cache_tokens,
        source=model_pb2.WeightSource(
            format=info.source.format,
            quantization=info.source.quantization,
            dequantized=info.source.dequantized,
        ),
        upstream=find_upstream(info),
        weights_origin=convert_weights_origin(info.weights_origin),
        has_vocabulary=bool(info.text.tokenizer_json),
    )


def _make_adapter_message(adapter: NamedAdapter) -> model_pb2.NamedAdapter:
    run = adapter.training_run
    return model_pb2.NamedAdapter(
        name=adapter.name,
        adapter=_make_identity(adapter.identity),
        weights_digest=adapter.weights_digest,
        files=[_make_file_digest(file) for file in adapter.files],
        training_run_id="" if run is None else run.training_run_id,
        training_step=None if run is None else run.step,
    )


def _make_identity(adapter: AdapterInfo) -> model_pb2.Adapter:
    return model_pb2.Adapter(
        peft_type=adapter.peft_type,
        digest=adapter.digest,
        base=adapter.base,
        base_model_digest=adapter.base_model_digest,
    )


def _make_file_digest(file: FileDigest) -> model_pb2.FileDigest:
    return model_pb2.FileDigest(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
