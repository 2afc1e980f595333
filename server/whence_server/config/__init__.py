"""Settings from flags, environment variables and the files that they name."""

from whence_server.config.otlp import find_unused_variables, read_otlp_settings
from whence_server.config.reading import get_flag
from whence_server.config.retention import add_retention_arguments, read_retention_policy
from whence_server.config.settings import (
    ServeConfig,
    add_arguments,
    list_setting_fields,
    make_serve_config,
)
from whence_server.config.spelling import spell_flag, spell_variable
from whence_server.config.training import (
    TrainConfig,
    add_train_arguments,
    get_train_fields,
    get_train_flag,
    make_train_config,
    read_train_settings,
    restore_train_config,
)

__all__ = [
    "ServeConfig",
    "TrainConfig",
    "add_arguments",
    "add_retention_arguments",
    "add_train_arguments",
    "find_unused_variables",
    "get_flag",
    "get_train_fields",
    "get_train_flag",
    "list_setting_fields",
    "make_serve_config",
    "make_train_config",
    "read_otlp_settings",
    "read_retention_policy",
    "read_train_settings",
    "restore_train_config",
    "spell_flag",
    "spell_variable",
]
