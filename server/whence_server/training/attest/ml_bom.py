"""CycloneDX 1.7 bill of materials of a trained model (ML-BOM), from the record of its training."""

import json
import uuid
from typing import Any

from whence.proof.times import spell_time
from whence.v1 import training_pb2 as pb
from whence_server.training.attest.trained import TrainedModel

_MODEL, _DATA = "model", "training-documents"


def describe_ml_bom(trained: TrainedModel) -> dict[str, Any]:
    """Return the bill of materials as JSON values.

    It has the model with its files and its parameters, the training documents by their Merkle root,
    and the model that the training began with. Equal records give equal bills.

    Raises:
        LineageError: the record's settings are no JSON.
    """
    run, checkpoint = trained
    parts = _list_parts(trained)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, run.head)}",
        "version": 1,
        "metadata": {
            "timestamp": spell_time(run.last_time_ns),
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "whence",
                        "version": run.started.whence_version or "unknown",
                    }
                ]
            },
            "component": {
                "type": "machine-learning-model",
                "bom-ref": _MODEL,
                "name": trained.name,
                "version": run.head[:16],
                "hashes": _list_hashes(checkpoint.model_digest),
                "modelCard": _describe_card(trained),
                "properties": _list_properties(trained),
                "components": [
                    {
                        "type": "file",
                        "bom-ref": f"file:{file.path}",
                        "name": file.path,
                        "hashes": _list_hashes(file.sha256),
                    }
                    for file in checkpoint.files
                ],
            },
        },
        "components": parts,
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [part["bom-ref"] for part in parts]},
        ],
    }


def _describe_card(trained: TrainedModel) -> dict[str, Any]:
    run = trained.run
    parameters: dict[str, Any] = {
        "approach": {"type": "self-supervised"},
        "task": "text-generation",
        "modelArchitecture": run.started.architecture or "unknown",
        "inputs": [{"format": "token ids"}],
        "outputs": [{"format": "token ids"}],
    }
    dataset = run.training_set.dataset
    if dataset is not None and dataset.merkle_root:
        parameters["datasets"] = [{"ref": _DATA}]
    card: dict[str, Any] = {"modelParameters": parameters}
    if run.evaluations:
        metrics = sorted(run.evaluations[-1].metrics.items())
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {"type": name, "value": str(value), "slice": "last evaluation"}
                for name, value in metrics
            ]
        }
    return card


def _list_parts(trained: TrainedModel) -> list[dict[str, Any]]:
    started, dataset = trained.run.started, trained.run.training_set.dataset
    parts = [] if dataset is None or not dataset.merkle_root else [_describe_documents(dataset)]
    parts += [
        {
            "type": "machine-learning-model",
            "bom-ref": name,
            "name": model.source,
            "hashes": _list_hashes(model.model_digest),
        }
        for name, model in (("parent-model", started.parent), ("base-model", started.adapter_base))
        if model.source
    ]
    return parts


def _describe_documents(dataset: pb.TrainingDataset) -> dict[str, Any]:
    properties = {
        "whence:merkle_root": dataset.merkle_root,
        "whence:num_documents": dataset.num_documents,
        "whence:num_examples": dataset.num_examples,
    }
    return {
        "type": "data",
        "bom-ref": _DATA,
        "name": "training documents",
        "version": dataset.merkle_root[:16],
        "data": [
            {
                "type": "dataset",
                "name": dataset.description or dataset.kind or "training documents",
                "contents": {"properties": _spell_properties(properties)},
            }
        ],
    }


def _list_properties(trained: TrainedModel) -> list[dict[str, str]]:
    run, checkpoint = trained
    found = trained.parse_settings(run.started.recipe_json)
    recipe = found if isinstance(found, dict) else {"settings": found}
    return _spell_properties(
        {
            "whence:training_run_id": run.id,
            "whence:record_head": run.head,
            "whence:step": checkpoint.step,
            "whence:num_parameters": run.started.num_parameters,
            "whence:weights_digest": checkpoint.weights_digest,
            "whence:tokenizer_digest": run.started.tokenizer_digest,
            **{f"whence:recipe:{name}": recipe[name] for name in sorted(recipe)},
        }
    )


def _list_hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}] if sha256 else []


def _spell_properties(values: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"name": name, "value": value if isinstance(value, str) else json.dumps(value)}
        for name, value in values.items()
        if value is not None and value != ""
    ]
