"""GGUF files: one file with a model's configuration, tokenizer and quantized weights.

transformers reads such a file with the package `gguf`, and dequantizes its weights. The format is
described in ggml's docs/gguf.md.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError

SUFFIX = ".gguf"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FILE_TYPES = "general.file_type"


def find_gguf(path: Path) -> Path | None:
    """Return the GGUF file that a path means; None if it means none.

    A directory without a configuration means its only GGUF file.

    Raises:
        ConfigurationError: the directory has several, the file is one of several parts, or the
            packages that read it are missing.
    """
    if path.is_file() and path.suffix == SUFFIX:
        found = path
    elif path.is_dir() and not any(path.glob("*config.json")):
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:10])
            raise ConfigurationError(
                f"{path} has {len(files)} GGUF files: name one of them, such as "
                f"{files[0]} ({names})"
            )
        if not files:
            return None
        found = files[0]
    else:
        return None
    if _SHARD.search(found.name):
        raise ConfigurationError(
            f"{found} is one part of a model in several files, which transformers does not read: "
            "merge them with `llama-gguf-split --merge`"
        )
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise ConfigurationError(
            f"{found} is a GGUF file, for which two packages are needed: pip install 'whence[gguf]'"
        )
    return found


def read_quantization(path: Path) -> str:
    """Return llama.cpp's name of the quantization of most tensors, such as "Q4_1".

    Raises:
        ConfigurationError: the file is not a GGUF file.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:
        raise ConfigurationError(f"{path} is not a GGUF file that can be read: {error}") from error
    field: Any = reader.get_field(_FILE_TYPES)
    if field is None:
        return ""
    number = int(field.contents())
    try:
        return gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"file type {number}"


def forget_quantizer(model: Any) -> None:
    """Make transformers treat a dequantized model as what it is: a model with plain tensors."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
