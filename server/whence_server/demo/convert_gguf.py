"""Conversion of the real model from GGUF to a directory in transformers' format.

A process of its own, because the memory that a conversion needs stays with its process:

    python -m whence_server.demo.convert_gguf FILE.gguf DIRECTORY
"""

import functools
import sys
from pathlib import Path


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the dequantised weights in float32, the tokenizer and the configuration.

    float32 holds the weights exactly: a 4-bit weight is a product and a sum of float16 numbers,
    which bfloat16 would round.
    """
    # Imported here, as the caller's own process needs no torch.
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers reads the file's head three times, and makes the map of names for each of 397
    # modules: with both made once, the conversion takes less than half the time.
    for name in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf, name, functools.cache(getattr(gguf, name)))
    model, info = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype="float32", output_loading_info=True
    )
    if any(info[name] for name in ("missing_keys", "mismatched_keys", "unexpected_keys")):
        raise ValueError(f"{file}: not every weight has a place in the model: {info}")
    # transformers refuses to save what was read from GGUF, although it is ordinary float32 by now.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
