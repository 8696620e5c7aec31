"""A refusal by pydantic, as one sentence that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pfl_platform.errors import nearest


def explain(
    error: ValidationError,
    model: type[BaseModel] | None,
    *,
    noun: str = "setting",
    of: str = "",
    origins: Mapping[str, str] | None = None,
) -> str:
    """One sentence for the first thing that `error` complains of.

    model: the model that refused, so that a mistyped name can get a suggestion. noun, of: what a field is called,
    and of what it is a field. origins: dotted field -> where its value was written, named in the sentence.

    >>> class Options(BaseModel, extra="forbid"):
    ...     rank: int = 8
    >>> try:
    ...     Options.model_validate({"rnak": 4})
    ... except ValidationError as error:
    ...     print(explain(error, Options, noun="option", of=" of the adapter 'x'"))
    There is no option 'rnak' of the adapter 'x'. Did you mean 'rank'?
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    origin = (origins or {}).get(where, "")
    source = f" (from {origin})" if origin else ""
    value, message = first["input"], first["msg"]
    match first["type"]:
        case "extra_forbidden":
            known = _fields(model, first["loc"][:-1])
            hint = nearest(str(first["loc"][-1]), known) if known else ""
            return f"There is no {noun} '{where}'{of}{source}.{hint}"
        case "missing":
            return f"The {noun} '{where}'{of} is missing."
        case "literal_error":
            allowed = [part.strip("'") for part in str(first["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
            return f"The {noun} '{where}'{of} cannot be {value!r}{source}; it is one of: {', '.join(allowed)}."
        case "value_error":
            message = message.removeprefix("Value error, ")
    said = message[:1].lower() + message[1:]
    if not where:
        return f"The {noun}s{of} do not go together{source}: {said.rstrip('.')}."
    return f"The {noun} '{where}'{of} cannot be {value!r}{source}: {said.rstrip('.')}."


def _fields(model: type[BaseModel] | None, path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section at `path` below `model`; empty where that is not known."""
    named = False  # the part before was a mapping from names to sections: this part is a name
    for part in path:
        if isinstance(part, int) or model is None or named:
            named = False
            continue
        if part not in model.model_fields:
            return []
        annotation = model.model_fields[part].annotation
        named = get_origin(annotation) is dict
        model = section_of(annotation)
    return list(model.model_fields) if model is not None else []


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside a field's annotation (itself, or in a union or a tuple), or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)
