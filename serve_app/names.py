"""Names that people choose in the configuration, and the rules they follow."""

from typing import Annotated, NewType

from pydantic import Field

TenantId = NewType("TenantId", str)
"""Who is served and billed. It becomes a label on metrics, so it is short and has no spaces."""

ModelName = NewType("ModelName", str)
"""What a client writes into `model`. Never holds ':', which separates a base model and an adapter."""

TenantIdText = Annotated[TenantId, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ModelNameText = Annotated[ModelName, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
