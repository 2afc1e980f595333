"""Trains the demo's model: a byte-level tokenizer and a small GPT-2, on the language reference.

Imports the whole training stack: import it only where a model is about to be trained.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from whence_server.demo.corpus import documents
from whence_server.demo.recipe import Recipe

END_OF_TEXT = "<|endoftext|>"

# The model has never seen a conversation: it goes on from what was said, in a new paragraph.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)


def train(recipe: Recipe, directory: Path) -> float:
    """Makes model and tokenizer and saves both, as `from_pretrained` reads them.

    Args:
        recipe: what to make; the same recipe gives the same weights on the same machine.
        directory: exists already; also Trainer's working directory.

    Returns:
        The loss over the last steps that were logged, in nats a token.
    """
    # Saving one file needs no bar of its own.
    logging.disable_progress_bar()
    set_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe)
    model = GPT2LMHeadModel(_config(recipe, tokenizer.eos_token_id))
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, directory),
        train_dataset=Blocks(_token_ids(tokenizer), recipe),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_LossOnTheBar)
    trainer.train()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1])


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the corpus, with END_OF_TEXT as id 0 and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=recipe.context_length,
        chat_template=CHAT_TEMPLATE,
    )


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks that begin anywhere in the corpus.

    A block is shorter than the context, which makes the training cheaper. Each takes one of
    the context's equal parts by lot, so that every position is trained, the first ones of a
    short prompt as often as any.

    It is as long as the training: every step sees blocks of its own.
    """

    def __init__(self, token_ids: torch.Tensor, recipe: Recipe) -> None:
        """Draws where the blocks begin.

        Args:
            token_ids: the whole corpus, shape (T,).
            recipe: gives the blocks' length and number, and the seed.
        """
        self._token_ids = token_ids
        self._length = recipe.block_length
        num_blocks = recipe.num_steps * recipe.batch_size
        num_parts = recipe.context_length // recipe.block_length
        generator = torch.Generator().manual_seed(recipe.seed)
        num_begins = len(token_ids) - recipe.block_length + 1
        self._begins = torch.randint(num_begins, (num_blocks,), generator=generator)
        self._parts = torch.randint(num_parts, (num_blocks,), generator=generator)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        begin = int(self._begins[index])
        first_position = int(self._parts[index]) * self._length
        block = self._token_ids[begin : begin + self._length]  # (block_length,)
        positions = torch.arange(first_position, first_position + self._length)
        return {"input_ids": block, "position_ids": positions, "labels": block}


class _LossOnTheBar(ProgressCallback):
    """Trainer's progress bar, with the loss at its end instead of a line for each log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        del args, state, control, kwargs
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.2f}")


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The corpus as one sequence, END_OF_TEXT after every document: shape (T,)."""
    backend = tokenizer.backend_tokenizer
    ids: list[int] = []
    for encoding in backend.encode_batch(documents()):
        ids += [*encoding.ids, tokenizer.eos_token_id]
    return torch.tensor(ids)


def _config(recipe: Recipe, eos_token_id: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=recipe.vocab_size,
        n_positions=recipe.context_length,
        n_layer=recipe.num_layers,
        n_head=recipe.num_heads,
        n_embd=recipe.embedding_size,
        # The training is short: what dropout saves at its end it costs in speed before.
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        # The same function as the default, in one kernel: a seventh of the training's time.
        activation_function="gelu_pytorch_tanh",
        loss_type="ForCausalLM",
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
    )


def _arguments(recipe: Recipe, directory: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=recipe.num_steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.num_warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        seed=recipe.seed,
        # On the CPU everywhere, so that a recipe means the same weights.
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=min(20, recipe.num_steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,
    )
