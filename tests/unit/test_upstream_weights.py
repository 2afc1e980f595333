"""Files that whence digests for an upstream, compared with those that the upstream names."""

from dataclasses import replace
from pathlib import Path

import pytest
from scripted_upstream import TOLD, URL, request, serve

from whence.v1 import observation_pb2 as ob
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.observation import WeightsOrigin
from whence_server.engines.upstream.claimed_files import describe_difference
from whence_server.engines.upstream.options import UpstreamOptions


async def test_files_that_the_upstream_claims_are_digested(tmp_path: Path) -> None:
    weights = tmp_path / "smol"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "README.md").write_text("# not a part")
    options = UpstreamOptions(URL, "", "0.1", weights=weights)
    service = await serve(tmp_path / "data", options=options)
    made = await service.run(request())
    assert [file.path for file in service.model.files] == ["config.json"]
    assert made.started.model_digest == service.model.model_digest != ""
    assert made.started.observation.weights == ob.WEIGHTS_ORIGIN_DIGESTS_OF_CLAIMED_FILES
    await service.close()


@pytest.mark.parametrize("claimed", ["/models/other", "other/smol2"])
async def test_files_of_another_name_than_the_upstream_says_are_graded_as_claimed(
    tmp_path: Path, claimed: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "smol").mkdir()
    (tmp_path / "smol" / "config.json").write_text("{}")
    options = UpstreamOptions(URL, "", "0.1", weights=tmp_path / "smol")
    service = await serve(tmp_path / "data", options=options, claimed_files=claimed)
    made = await service.run(request())
    assert claimed in made.started.upstream.weights_difference
    assert made.started.upstream.weights_difference in caplog.text
    assert made.started.model_digest == service.model.model_digest != ""
    assert made.started.observation.weights == ob.WEIGHTS_ORIGIN_CLAIMED
    assert service.model.weights_origin is WeightsOrigin.CLAIMED
    await service.close()


@pytest.mark.parametrize("claimed", ["", "/models/smol", "HuggingFaceTB/SmolLM2", "C:\\m\\a.gguf"])
async def test_files_are_those_of_the_upstream_by_their_names(tmp_path: Path, claimed: str) -> None:
    cached = tmp_path / "models--HuggingFaceTB--SmolLM2" / "snapshots" / "1"
    cached.mkdir(parents=True)
    (cached / "a.gguf").write_bytes(b"")
    (tmp_path / "smol").symlink_to(cached)
    told = replace(TOLD, claimed_files=claimed)
    assert describe_difference(tmp_path / "smol", told) == ""


async def test_another_file_than_the_upstream_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    told = replace(TOLD, claimed_files="/models/b.gguf")
    for given in (tmp_path, tmp_path / "a.gguf"):
        with pytest.raises(ConfigurationError, match=r"serves '/models/b\.gguf'"):
            describe_difference(given, told)
