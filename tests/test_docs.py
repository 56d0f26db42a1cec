"""The documentation says what the code has."""

import re
from pathlib import Path

import pytest

from ngvae_pyro.specs import DataSpec, FitSpec

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("table", "spec"), [("fit", FitSpec), ("data", DataSpec)])
def test_the_table_of_keys_has_every_key_with_its_default(table, spec):
    text = (ROOT / "docs" / "running.md").read_text()
    rows = re.findall(rf"^\| `{table}\.(\w+)` \| ([^|]*) \|", text, re.MULTILINE)

    def shown(value):
        if value is None:
            return "none"
        return f"`{value}`" if isinstance(value, str) else str(value).lower()

    defaults = {name: field.default for name, field in spec.model_fields.items()}
    assert [name for name, _ in rows] == list(defaults)
    for name, default in rows:
        expected = defaults[name]
        assert default == shown(expected) or float(default) == expected, name
