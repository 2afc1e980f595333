"""Names on the trace of a training run: see `telemetry.names` for the rules that they keep.

The digests of weights and files have the names that they have on a generation's span.
"""

from typing import Final

# ---- span names: constant, numbers go in attributes ----

TRAINING_RUN: Final = "training_run"
"""The root: from the run's start to the end of its newest attempt."""
TRAINING_ATTEMPT: Final = "training_attempt"
"""A process's share of the run: from its start to its end, or where it was killed, to the last
thing that it has on record."""
EPOCH: Final = "epoch"
"""One pass over the training set, or what an attempt made of it; what happened after its last
step and before the next one is in it."""
OPTIMIZER_STEP: Final = "optimizer_step"
"""One update of the parameters; only every n-th has a span."""
EVALUATION: Final = "evaluation"
"""A measurement on other text."""
CHECKPOINT: Final = "checkpoint"
"""Weights written to disk, and digested."""

# ---- on every span of a training run: from TrainingRunStarted ----

TRAINING_RUN_ID: Final = "whence.training.run_id"
"""TrainingRunStarted.training_run_id."""
TRAINING_RUN_NAME: Final = "whence.training.run_name"
"""TrainingRunStarted.name; on the root, and on metrics."""
TRAINING_ATTEMPT_NUMBER: Final = "whence.training.attempt"
"""AttemptStarted.attempt; on all but the root."""

# ---- on every span of a training ----

TRAINING_SUMMARY: Final = "whence.training.summary"
"""One line for a person, made by `whence.summary` from the recorded messages."""

# ---- on `training_run` ----

TRAINING_ARCHITECTURE: Final = "whence.training.architecture"
"""TrainingRunStarted.architecture."""
TRAINING_NUM_PARAMETERS: Final = "whence.training.num_parameters"
"""TrainingRunStarted.num_parameters."""
TRAINING_NUM_PLANNED_STEPS: Final = "whence.training.num_planned_steps"
"""TrainingRunStarted.num_planned_steps; absent where it is not known."""
TRAINING_GROUP_NAMES: Final = "whence.training.groups.names"
"""TrainingRunStarted.groups: what the arrays of norms on steps refer to."""
TRAINING_PARENT_RUN_ID: Final = "whence.training.parent.run_id"
"""ParentModel.training_run_id; absent where there is none."""
TRAINING_MERKLE_ROOT: Final = "whence.training.dataset.merkle_root"
"""TrainingDataset.merkle_root; absent where the documents are not known."""
TRAINING_NUM_DOCUMENTS: Final = "whence.training.dataset.num_documents"
"""TrainingDataset.num_documents; absent where they are not known."""
TRAINING_NUM_EXAMPLES: Final = "whence.training.dataset.num_examples"
"""TrainingDataset.num_examples; absent where that is not known."""
TRAINING_STATE: Final = "whence.training.state"
"""AttemptFinished.state in lower case: "completed", "interrupted" or "failed"; also on attempts,
where "killed" stands for one that has no end on record."""
TRAINING_INITIAL_WEIGHTS_DIGEST: Final = "whence.training.initial_weights_digest"
"""TrainingRunStarted.initial_weights_digest; on the root. At the end: `whence.weights.digest`."""

# ---- on `training_attempt` ----

TRAINING_RESUMED_STEP: Final = "whence.training.resumed_step"
"""AttemptStarted.resumed_step."""
TRAINING_NUM_PROCESSES: Final = "whence.training.num_processes"
"""AttemptStarted.num_processes."""

# ---- on `epoch` ----

EPOCH_NUMBER: Final = "whence.training.epoch.number"
"""Number of the epoch, from 1: TrainingStep.epoch, rounded up."""
EPOCH_FIRST_STEP: Final = "whence.training.epoch.first_step"
"""TrainingStep.step of the first that the attempt made in it; absent where it made none."""
EPOCH_NUM_STEPS: Final = "whence.training.epoch.num_steps"
"""Steps that the attempt made in it, with and without a span."""
EPOCH_NUM_TOKENS: Final = "whence.training.epoch.num_tokens"
"""The sum of their TrainingStep.num_tokens."""
EPOCH_NUM_NON_FINITE: Final = "whence.training.epoch.num_non_finite"
"""Steps whose TrainingStep.loss is NaN or infinite; absent where there are none."""
EPOCH_MEAN_LOSS: Final = "whence.training.epoch.mean_loss"
"""Mean of the finite values of TrainingStep.loss; absent if there are none."""

# ---- on `optimizer_step` and `evaluation`: many backends cannot hold NaN ----

TRAINING_NON_FINITE: Final = "whence.training.non_finite"
"""Names of the attributes that are left out here because their values are NaN or infinite."""

# ---- on metrics alone ----

TRAINING_QUANTITY: Final = "whence.training.quantity"
"""The value that is not finite: loss, grad_norm, learning_rate or evaluation_loss."""

# ---- on `optimizer_step`: from TrainingStep; the first two also on what follows a step ----

TRAINING_STEP: Final = "whence.training.step.number"
"""TrainingStep.step; on evaluations and checkpoints theirs."""
TRAINING_EPOCH: Final = "whence.training.step.epoch"
"""TrainingStep.epoch."""
TRAINING_STEP_STRIDE: Final = "whence.training.step.stride"
"""Number of steps from one span of a step to the next, around here."""
TRAINING_LOSS: Final = "whence.training.loss"
"""TrainingStep.loss; absent where it is not finite: `whence.training.non_finite` says so."""
TRAINING_LEARNING_RATE: Final = "whence.training.learning_rate"
"""TrainingStep.learning_rate; absent where it is not finite."""
TRAINING_GRAD_NORM: Final = "whence.training.grad_norm"
"""TrainingStep.grad_norm; absent where it is not finite."""
TRAINING_NUM_TOKENS: Final = "whence.training.step.num_tokens"
"""TrainingStep.num_tokens."""
TRAINING_NUM_TOKENS_SEEN: Final = "whence.training.num_tokens_seen"
"""TrainingStep.num_tokens_seen."""
TRAINING_STEP_NUM_EXAMPLES: Final = "whence.training.step.num_examples"
"""Over all processes, repetitions included."""
TRAINING_STEP_EXAMPLE_IDS: Final = "whence.training.step.example_ids"
"""RankExamples.example_ids of all processes by rank; absent where they are more than 256."""
TRAINING_UPDATE_NORMS: Final = "whence.training.step.update_norms"
"""TrainingStep.update_norms, parallel to `whence.training.groups.names`."""
TRAINING_WEIGHT_NORMS: Final = "whence.training.step.weight_norms"
"""TrainingStep.weight_norms, in the same order."""
TRAINING_STEP_SKIPPED: Final = "whence.training.step.skipped"
"""TrainingStep.skipped; absent where it was not."""

# ---- on `evaluation` and `checkpoint` ----

EVALUATION_METRIC_PREFIX: Final = "whence.training.evaluation."
"""Followed by a metric's name: Evaluation.metrics; those that are not finite are left out."""
CHECKPOINT_PATH: Final = "whence.training.checkpoint.path"
"""Checkpoint.path; its digests are `whence.model.digest` and `whence.weights.digest`."""
CHECKPOINT_RESUMABLE: Final = "whence.training.checkpoint.resumable"
"""Checkpoint.resumable."""
CHECKPOINT_NUM_BYTES: Final = "whence.training.checkpoint.num_bytes"
"""The sum of the sizes of Checkpoint.files."""
