from __future__ import annotations

from typing import Any

import pytest

from vitlet.data.prompts import TEMPLATES, expand
from vitlet.errors import UsageError


def test_every_class_meets_every_template_in_order() -> None:
    assert expand(["dog", " cat "], ["a {}", "the {}!"]) == [
        ["a dog", "the dog!"],
        ["a cat", "the cat!"],
    ]


def test_a_template_may_be_named_or_written() -> None:
    assert expand(["dog"]) == [["a photo of a dog."]]
    assert expand(["dog"], "none") == [["dog"]]
    assert expand(["dog"], "a drawing of a {}") == [["a drawing of a dog"]]
    assert all(len(expand(["{x} %s"], name)[0]) == len(TEMPLATES[name]) for name in TEMPLATES)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], "default", "one or more class names"),
        (["dog", " "], "default", "none of them empty"),
        (["dog", "dog"], "default", "more than once"),
        ("dog", "default", "a list of names"),
        (["dog"], "photos", "one of default"),
        (["dog"], ["a photo"], "exactly once"),
        (["dog"], ["{} and {}"], "exactly once"),
        (["dog"], [], "at least one template"),
    ],
)
def test_senseless_arguments_are_refused(classes: Any, templates: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(classes, templates)
