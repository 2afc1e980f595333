"""Public names of the package, and the modules that importing it loads."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import whence
from whence import errors
from whence.cli.main import make_parser
from whence.options import GenerateOptions


def test_all_is_exactly_the_public_names():
    for name in whence.__all__:
        getattr(whence, name)
    public = {
        name
        for name, value in vars(whence).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name not in {"TYPE_CHECKING", "import_module"}
    }
    assert sorted(public | {"__version__"}) == sorted(whence.__all__)
    assert set(whence.__all__) <= set(dir(whence))


def test_every_error_is_public_and_drawn_in_the_tree():
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, Exception):
            assert name in whence.__all__
            assert issubclass(value, errors.WhenceError)
            assert name in errors.__doc__


def test_every_status_but_ok_has_an_error():
    assert set(errors.ERRORS) == set(errors.Code) - {errors.Code.OK}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = whence.nonsense


@pytest.mark.parametrize(
    ("imported", "unwanted"),
    [("whence", ("grpc", "google")), ("whence.v1", ("grpc",)), ("whence.errors", ("grpc",))],
)
def test_imports_load_no_unneeded_package(imported, unwanted):
    program = f"import sys, {imported}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    # Site packages may pre-import namespace packages through .pth files.
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    gained = {name.partition(".")[0] for name in set(loaded) - set(before)}
    assert not gained & set(unwanted)


def test_the_command_offers_every_option_of_generate():
    arguments = make_parser().parse_args(["generate", "x"])
    by_other_means = {"metadata"}
    assert set(GenerateOptions.__annotations__) - set(vars(arguments)) == by_other_means


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["generations", "list"], ["model"], ["training", "show"]]
)
def test_help_says_what_the_exit_statuses_mean(capsys, command):
    with pytest.raises(SystemExit) as raised:
        make_parser().parse_args([*command, "--help"])
    assert raised.value.code == 0
    assert "130  interrupted" in capsys.readouterr().out


def test_the_version_is_shown(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--version"])
    assert capsys.readouterr().out == f"whence {whence.__version__}\n"


def test_both_clients_read_training_runs_by_the_same_methods():
    from whence.aio_training import AsyncTrainingRuns
    from whence.training import TrainingRuns

    def methods(kind):
        return {
            name: inspect.signature(value).parameters
            for name, value in vars(kind).items()
            if not name.startswith("_")
        }

    assert methods(AsyncTrainingRuns) == methods(TrainingRuns)
    assert "watch" in methods(TrainingRuns)
