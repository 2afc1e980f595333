"""SLSA provenance v1 of a trained model, from the record of its training."""

from typing import Any

from whence.proof.predicate import STATEMENT_TYPE
from whence.proof.times import spell_time
from whence.v1 import training_pb2 as pb
from whence_server.training.attest.trained import TrainedModel

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:whence:training:1"


def describe_provenance(trained: TrainedModel) -> dict[str, Any]:
    """Return an in-toto statement with the provenance of a model's files.

    Raises:
        LineageError: the record's settings are no JSON.
    """
    run = trained.run
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": file.path, "digest": {"sha256": file.sha256}}
            for file in trained.checkpoint.files
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _describe_parameters(trained),
                "internalParameters": {"architecture": run.started.architecture},
                "resolvedDependencies": _list_dependencies(trained),
            },
            "runDetails": {
                "builder": {"id": "urn:whence:train", "version": _list_versions(run.started)},
                "metadata": {
                    "invocationId": run.id,
                    "startedOn": spell_time(run.started.start_time.ToNanoseconds()),
                    "finishedOn": spell_time(run.last_time_ns),
                },
                "byproducts": [{"name": run.path.name, "annotations": {"head": run.head}}],
            },
        },
    }


def _describe_parameters(trained: TrainedModel) -> dict[str, Any]:
    """Return the recipe of `whence-server train`, or the arguments of another trainer."""
    started = trained.run.started
    found = trained.parse_settings(started.recipe_json or started.arguments_json)
    return found if isinstance(found, dict) else {"arguments": found}


def _list_dependencies(trained: TrainedModel) -> list[dict[str, Any]]:
    started = trained.run.started
    found: list[dict[str, Any]] = []
    dataset = trained.run.training_set.dataset
    if dataset is not None and dataset.merkle_root:
        found.append(
            {
                "name": "training documents",
                # No SHA-256 of one file: the root of RFC 9162's tree over the documents' digests.
                "digest": {"rfc9162Sha256": dataset.merkle_root},
                "annotations": {"numDocuments": str(dataset.num_documents)},
            }
        )
    for name, model in (("parent model", started.parent), ("base model", started.adapter_base)):
        if model.source:
            digests = {"modelDigest": model.model_digest, "weightsDigest": model.weights_digest}
            found.append(
                {
                    "name": name,
                    "uri": model.source,
                    "digest": {key: value for key, value in digests.items() if value},
                }
            )
    return found


def _list_versions(started: pb.TrainingRunStarted) -> dict[str, str]:
    return {"whence": started.whence_version} if started.whence_version else {}
