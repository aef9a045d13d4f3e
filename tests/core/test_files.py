"""Files that are replaced as a whole."""

import pytest

from fntrain._core import files
from fntrain._core.files import write_text


def test_a_file_is_written_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_text(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_bytes() == b"old\r\n"
    assert list(tmp_path.iterdir()) == [path]
