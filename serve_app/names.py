"""Names that people choose in the configuration, and the form they have."""

import re
from dataclasses import dataclass
from typing import Annotated, NewType

from pydantic import AfterValidator


@dataclass(frozen=True)
class Form:
    """Checks the form of a text, and says it in words where pydantic would show the pattern.

    Attributes:
        pattern: Regular expression that the whole text matches.
        words: The form in words; completes "must be …".
    """

    pattern: str
    words: str

    def __call__(self, value: str) -> str:
        """Return the value as it is, or raise ValueError."""
        if re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"must be {self.words}")
        return value


TenantId = NewType("TenantId", str)
"""Who is served and billed. It becomes a label on metrics, so it is short and has no spaces."""

KeyId = NewType("KeyId", str)
"""Names an API key where it is shown and billed. Tells nothing of the key itself."""

ModelName = NewType("ModelName", str)
"""What a client writes into `model`. Without ':', which separates a base model and an adapter."""

TenantIdText = Annotated[
    TenantId,
    AfterValidator(
        Form(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, '.', '_' or '-'")
    ),
]
ModelNameText = Annotated[
    ModelName,
    AfterValidator(
        Form(
            r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}",
            "1 to 128 letters, digits, '.', '_', '-' or '/', without ':' (it separates a model "
            "and an adapter)",
        )
    ),
]

_ADAPTER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

AdapterNameText = Annotated[
    str, AfterValidator(Form(_ADAPTER, "1 to 128 letters, digits, '.', '_' or '-'"))
]
"""An adapter without its base model. It is also a folder's name, so it holds no '/'."""

NamePrefixText = Annotated[
    str,
    AfterValidator(
        Form(
            rf"({_ADAPTER})?",
            "at most 128 letters, digits, '.', '_' or '-', a letter or digit first",
        )
    ),
]


PricedNameText = Annotated[
    str,
    AfterValidator(
        Form(
            rf"[A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}(:{_ADAPTER})?",
            "a base model, or one of its adapters as model:adapter",
        )
    ),
]


def is_adapter_name(text: str) -> bool:
    """Return whether an adapter may be called so."""
    return re.fullmatch(_ADAPTER, text) is not None
