"""The demo's server finds what an earlier one has found out about the model."""

from pathlib import Path

from whence_server.demo.warm_start import bring_findings, keep_findings


def test_findings_are_kept_from_one_data_directory_to_the_next(tmp_path: Path) -> None:
    first, cache, second = (tmp_path / name for name in ("first", "cache", "second"))
    for directory in (first, second):
        directory.mkdir()
    for name in ("digests.json", "findings.json", "journal.db"):
        (first / name).write_text(f"content of {name}")
    keep_findings(first, cache)
    bring_findings(second, cache)
    assert {path.name: path.read_text() for path in second.iterdir()} == {
        "digests.json": "content of digests.json",
        "findings.json": "content of findings.json",
    }
    (first / "findings.json").write_text("newer")
    keep_findings(first, cache)
    bring_findings(second, cache)
    assert (second / "findings.json").read_text() == "newer"


def test_a_cache_that_is_missing_or_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bring_findings(tmp_path, tmp_path / "missing")
    keep_findings(tmp_path, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
