"""Settings as text and as nested mappings: how they are read, and how one is laid over another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_platform.errors import UserError
from pfl_platform.settings import lay_over, nested, parse


class TestYaml:
    def test_words_and_numbers(self) -> None:
        text = "[1e-3, 1.5e3, -2, 0x10, 1_0, off, yes, true, null, 2026-01-02, .inf, 1.0]"
        assert parse(text, "a test") == [
            0.001, 1500.0, -2, 16, 10, "off", "yes", True, None, "2026-01-02", float("inf"), 1.0,
        ]  # fmt: skip

    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd []", "!!python/name:os.system"])
    def test_no_code_is_run(self, tag: str) -> None:
        with pytest.raises(UserError, match="Not readable as YAML"):
            parse(tag, "a test")

    @settings(max_examples=40)
    @given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text("ab"), inner)))
    def test_laying_nothing_over_changes_nothing(self, value: Any) -> None:
        settings = {"x": value}
        assert lay_over(settings, {}) == settings
        assert lay_over(settings, settings) == settings

    SECTIONS = st.dictionaries(st.sampled_from("pqr"), st.dictionaries(st.sampled_from("uv"), st.integers()))

    @given(SECTIONS, SECTIONS, SECTIONS)
    def test_laying_over_is_associative(self, a: Any, b: Any, c: Any) -> None:
        assert lay_over(lay_over(a, b), c) == lay_over(a, lay_over(b, c))

    def test_a_dotted_key_is_the_nested_mapping(self) -> None:
        assert nested("evaluation.every", 3) == {"evaluation": {"every": 3}}
        assert nested("backbone_options.max.length", 3) == {"backbone_options": {"max": {"length": 3}}}
        assert nested("personalizer", None) == {"personalizer": None}
