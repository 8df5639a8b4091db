"""Which runs can be compared."""

import pytest

from pipeline.artifacts import OUTPUTS
from pipeline.errors import ConfigError, ExportError
from tests.comparing import a_run, compared, pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data"), 200)


def test_what_cannot_be_compared_is_told(tmp_path, data):
    a, b = (a_run(tmp_path / "ants" / name, data) for name in "ab")
    with pytest.raises(ConfigError, match=r"Two to 26 runs can be compared\. Received: 1\."):
        compared(a)
    with pytest.raises(ConfigError, match=r"is one run, .*, given twice"):
        compared(a, b, a)
    (b / OUTPUTS).unlink()
    with pytest.raises(ConfigError, match=r"outputs\.npz is missing.*another version.*Make it again: graft run"):
        compared(a, b)
    (b / OUTPUTS).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="one of its files cannot be read"):
        compared(a, b)
    (a / "model" / "manifest.json").unlink()
    with pytest.raises(ExportError, match="is not a model exported by graft"):
        compared(a, b)
