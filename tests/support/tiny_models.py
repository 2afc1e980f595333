"""Tiny models with random weights, saved to disk as real ones are, for tests to load.

Every architecture is the transformers class itself; only the sizes are small. The tokenizer
is a real byte-level BPE, and the models' vocabulary is padded beyond it, as is common in
published checkpoints.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BloomConfig,
    CohereConfig,
    DeepseekV32Config,
    DogeConfig,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    MiniMaxM3VLTextConfig,
    MistralConfig,
    MixtralConfig,
    NemotronHConfig,
    OlmoHybridConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3NextConfig,
    RwkvConfig,
    Zamba2Config,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The for statement is used to iterate.",
    "def generate(prompt): return model(prompt)  # naïve café — “quotes”, 你好, 😀😃, ЖЗ",
    "A token, a reason, a trace: where did each come from? 0123456789 {}[]()<>\n\t",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PADDED_VOCABULARY = 416

SHAPE = {
    "vocab_size": PADDED_VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LONGROPE_BOUNDARY = 40
"""Tokens up to which a pass has the short frequencies, and after which dynamic NTK begins."""
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": LONGROPE_BOUNDARY,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [2.0 + 1.5 * i for i in range(6)],
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=PADDED_VOCABULARY, n_positions=256, n_embd=48, n_layer=3, n_head=4
    ),
    # Room for generations that last seconds: for what happens in their middle.
    "gpt2-long": GPT2Config(
        vocab_size=PADDED_VOCABULARY, n_positions=8192, n_embd=32, n_layer=2, n_head=2
    ),
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=2),
    # A window far shorter than the tests' prompts.
    "mistral": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=16),
    # Learned positions with an offset, not rotary ones.
    "opt": OPTConfig(
        vocab_size=PADDED_VOCABULARY,
        hidden_size=48,
        word_embed_proj_dim=48,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
    ),
    # No keys and values: a recurrent state.
    "mamba": MambaConfig(vocab_size=PADDED_VOCABULARY, hidden_size=32, num_hidden_layers=2),
    # Read in blocks of its own, shorter than the tests' prompts.
    "mamba2": Mamba2Config(
        vocab_size=PADDED_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=16,
        state_size=16,
        n_groups=2,
        chunk_size=16,
    ),
    # Recurrent layers and attention in turns, experts in every other one.
    "jamba": JambaConfig(
        **SHAPE | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    # The same, but it has its own mind about which logits to compute.
    "bamba": BambaConfig(
        **SHAPE,
        num_key_value_heads=2,
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=24,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=16,
    ),
    # A list of tensors as its state; its first pass rescales the weights of every second layer on.
    "rwkv": RwkvConfig(
        vocab_size=PADDED_VOCABULARY,
        context_length=256,
        hidden_size=32,
        num_hidden_layers=3,
        rescale_every=2,
    ),
    # Attention within chunks, shorter than the tests' prompts; every fourth layer sees everything.
    "llama4": Llama4TextConfig(
        **SHAPE | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size_mlp=96,
        num_local_experts=2,
        attention_chunk_size=16,
    ),
    # Attention and a recurrent state side by side in every layer.
    "falcon_h1": FalconH1Config(
        **SHAPE,
        num_key_value_heads=2,
        mamba_d_ssm=48,
        mamba_n_heads=4,
        mamba_d_head=12,
        mamba_n_groups=1,
        mamba_d_state=16,
        mamba_chunk_size=16,
    ),
    "granitemoehybrid": GraniteMoeHybridConfig(
        **SHAPE,
        num_key_value_heads=2,
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        mamba_n_heads=4,
        mamba_d_head=24,
        mamba_d_state=16,
        mamba_chunk_size=16,
    ),
    # What its attention keeps of a position is smaller than the values that it attends to.
    "kimi_linear": KimiLinearConfig(
        **SHAPE | {"num_hidden_layers": 4},
        num_key_value_heads=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=12,
        head_dim=12,
        linear_num_heads=4,
        linear_head_dim=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
    # A convolution's last inputs for a state.
    "lfm2": Lfm2Config(
        **SHAPE | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"] * 2,
    ),
    # Linear attention, whose state is in a cache of its own kind.
    "minimax": MiniMaxConfig(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=12,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        num_local_experts=4,
        block_size=16,
    ),
    "nemotron_h": NemotronHConfig(
        **SHAPE | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=12,
        layers_block_type=["mamba", "attention"] * 2,
        mamba_num_heads=4,
        mamba_head_dim=24,
        ssm_state_size=16,
        n_groups=1,
        chunk_size=16,
    ),
    "olmo_hybrid": OlmoHybridConfig(
        **SHAPE | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=12,
        linear_value_head_dim=24,
    ),
    # What the heads say is gated by the newest token before it is projected.
    "qwen3_next": Qwen3NextConfig(
        **SHAPE | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=12,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=12,
        linear_value_head_dim=12,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    # Attention twice as wide as the model, in a block that several layers share.
    "zamba2": Zamba2Config(
        **SHAPE | {"num_hidden_layers": 6},
        layers_block_type=["mamba", "hybrid"] * 3,
        num_mem_blocks=2,
        use_shared_attention_adapter=True,
        adapter_rank=8,
        mamba_d_state=16,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=24,
        chunk_size=16,
    ),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=12),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "phi": PhiConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=12, sliding_window=16),
    "gemma3": Gemma3TextConfig(**SHAPE, num_key_value_heads=2, head_dim=12, sliding_window=16),
    "mixtral": MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=4),
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE,
        num_key_value_heads=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    "bloom": BloomConfig(vocab_size=PADDED_VOCABULARY, hidden_size=48, n_layer=3, n_head=4),
    "falcon": FalconConfig(
        vocab_size=PADDED_VOCABULARY, hidden_size=48, num_hidden_layers=3, num_attention_heads=4
    ),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=2),
    # Logits and residual stream scaled, blocks side by side, no norm after the last layer.
    "granite": GraniteConfig(
        **SHAPE,
        num_key_value_heads=2,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    # Other frequencies for passes beyond 40 tokens; Phi-3 then reads all that came before again.
    "phi3_longrope": Phi3Config(
        **SHAPE,
        num_key_value_heads=2,
        original_max_position_embeddings=LONGROPE_BOUNDARY,
        rope_parameters=LONGROPE,
    ),
    # The same, with the keys of what came before left as they are.
    "llama_longrope": LlamaConfig(**SHAPE, num_key_value_heads=2, rope_parameters=LONGROPE),
    # Code of its own: another scale as well.
    "phimoe_longrope": PhimoeConfig(
        **SHAPE,
        num_key_value_heads=2,
        num_local_experts=4,
        original_max_position_embeddings=LONGROPE_BOUNDARY,
        rope_parameters=LONGROPE | {"short_mscale": 1.0, "long_mscale": 1.4},
    ),
    # New frequencies for every token beyond 40.
    "llama_dynamic": LlamaConfig(
        **SHAPE | {"max_position_embeddings": 40},
        num_key_value_heads=2,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 5.0},
    ),
    # One kind of layer with dynamic frequencies, another with fixed ones.
    "gemma3_dynamic": Gemma3TextConfig(
        **SHAPE | {"max_position_embeddings": 40},
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 5.0},
        },
    ),
    # Attention to eight tokens, which it picks: as new, it counts all of them alike.
    "doge": DogeConfig(**SHAPE, num_key_value_heads=2, sliding_window=16, keep_window_size=8),
    # Attention to eight tokens, which an indexer picks.
    "deepseek_v32": DeepseekV32Config(
        **SHAPE,
        num_key_value_heads=4,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        index_topk=8,
        index_n_heads=4,
        index_head_dim=16,
        first_k_dense_replace=1,
    ),
    # Attention to two blocks of eight tokens and the newest one.
    "minimax_m3": MiniMaxM3VLTextConfig(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=12,
        rotary_dim=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        dense_intermediate_size=96,
        shared_intermediate_size=32,
        index_n_heads=2,
        index_head_dim=12,
        index_block_size=8,
        index_topk_blocks=2,
        layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    ),
    "cohere": CohereConfig(**SHAPE, num_key_value_heads=2, logit_scale=0.25),
    "opt_post_norm": OPTConfig(
        vocab_size=PADDED_VOCABULARY,
        hidden_size=48,
        word_embed_proj_dim=48,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        do_layer_norm_before=False,
    ),
}
BATCHED = [
    "gpt2",
    "llama",
    "qwen2",
    "mistral",
    "opt",
    # Mixtures of experts, windows beside full attention, soft caps, attention code of their own.
    "qwen3",
    "gpt_neox",
    "phi",
    "gemma2",
    "gemma3",
    "mixtral",
    "qwen2_moe",
    "bloom",
    "falcon",
]
# Recurrent states, alone and beside attention, and attention within chunks.
SOLO = ["mamba", "mamba2", "jamba", "bamba", "rwkv", "llama4"]
ARCHITECTURES = BATCHED + SOLO
# Batched as well: for what comes after their last layer.
LAST_STAGES = ["granite", "cohere", "opt_post_norm"]
# Singly as well: more ways to put attention beside what is recurrent.
HYBRIDS = [
    "falcon_h1",
    "granitemoehybrid",
    "kimi_linear",
    "lfm2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_next",
    "zamba2",
]
# Singly as well: their positions depend on how long a pass or a sequence is.
LENGTH_DEPENDENT = [
    "phi3_longrope",
    "llama_longrope",
    "phimoe_longrope",
    "llama_dynamic",
    "gemma3_dynamic",
]
# What a recurrent state takes in and how fast it forgets: scaled up, it would forget at once, or
# overflow in half precision.
STATE = ("A_log", "conv1d", "dt_proj", "x_proj")
NO_SOURCES = {"bloom", "falcon", "mamba", "mamba2", "rwkv", "qwen3_next"}
"""Architectures without attention, or whose attention cannot be probed."""


def byte_level_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with an end-of-sequence token (id 0) and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny_model(directory: Path, architecture: str = "gpt2", seed: int = 0) -> Path:
    """Write a model of an architecture and its tokenizer, with `save_pretrained`.

    Weights are scaled up, so that distributions are far from flat and greedy continuations
    far from ties.
    """
    config = CONFIGS[architecture]
    config.bos_token_id = config.eos_token_id = 0
    config.pad_token_id = None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not any(part in name for part in STATE):
                parameter.mul_(6.0)
            elif name.endswith(".bias") and not any(part in name for part in STATE):
                # transformers begins with zeros, which no trained model has: they would hide
                # whether a bias is added at all, and in which operation.
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    return directory


BROKEN_POSITION = 60


def save_model_that_breaks(
    directory: Path, architecture: str = "gpt2", position: int = BROKEN_POSITION
) -> Path:
    """Write a tiny GPT-2 whose position embedding is NaN at a position.

    Generations that reach this context fail, with the steps up to there.
    """
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(directory, architecture))
    with torch.no_grad():
        model.transformer.wpe.weight[position] = float("nan")
    model.save_pretrained(directory)
    return directory
