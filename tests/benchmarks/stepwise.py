"""A training of the demo model's shape that makes one step on each command.

It waits for a line before each step and for one at the end, and answers each step with what it
took: its seconds, its processor time, and that of the processes that it has started. So several
trainings can take turns, and what disturbs the machine disturbs them alike.

python tests/benchmarks/stepwise.py DIRECTORY STEPS [OPTIONS]

OPTIONS are JSON: `norm_stride` of the record, without which there is none, and an `endpoint` that
the record is exported to.
"""

import io
import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

# Read once, when torch is loaded; the demo's training has it, too.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import psutil
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from whence_server.demo.recipe import SETTINGS
from whence_server.training import record
from whence_server.training.export import start as telemetry
from whence_server.training.train.models import SMALL_GPT2

BATCH_SIZE = 2


class Turns(TrainerCallback):
    """Reports a step, and waits for the next one's turn.

    Wall-clock time is that of the turn; processor time also has what other threads and processes
    did since.
    """

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._process = psutil.Process()
        self._used = self._use()
        self._wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self._begun
        used = self._use()
        spent = [now - before for now, before in zip(used, self._used, strict=True)]
        print(json.dumps([seconds, *spent]), file=self._answers, flush=True)
        self._used = used
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit("standard input ended before the last step")
        self._begun = time.perf_counter()

    def _use(self) -> tuple[float, float]:
        times = [child.cpu_times() for child in self._process.children()]
        return time.process_time(), sum(each.user + each.system for each in times)


def train(answers: TextIO) -> None:
    """Train as the arguments say; what it took is written to `answers`."""
    where, num_steps = Path(sys.argv[1]), int(sys.argv[2])
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=SETTINGS["vocab_size"],
            n_positions=SETTINGS["block_size"],
            loss_type="ForCausalLM",
            bos_token_id=0,
            eos_token_id=0,
            **SMALL_GPT2,
        )
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(where),
            max_steps=num_steps,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=1e-3,
            save_strategy="no",
            logging_steps=20,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=_blocks(BATCH_SIZE * num_steps),
    )
    if "norm_stride" in options:
        record(trainer, norm_stride=options["norm_stride"])
    # After the recorder's callback, whose time counts.
    trainer.add_callback(Turns(answers))
    if "endpoint" in options:
        os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = options["endpoint"]
    trainer.train()
    if "endpoint" in options:
        export = telemetry.start(where / "lineage.binpb")
        assert export is not None
        assert export.close()


def _blocks(num_blocks: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    size = (num_blocks, SETTINGS["block_size"])
    ids = torch.randint(SETTINGS["vocab_size"], size, generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


if __name__ == "__main__":
    answers = sys.stdout
    with redirect_stdout(io.StringIO()):  # the trainer prints, too
        train(answers)
