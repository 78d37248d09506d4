"""What addresses may ask for, by name and range."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from orchestrator.store.base import RunStatus
from orchestrator.store.browsing import Sorting, Wanted

Offset = Annotated[int, Query(ge=0)]
Limit = Annotated[int, Query(ge=1, le=500)]


class RunQuery(BaseModel):
    """Which runs: ``q`` is looked for in names, ids and tags."""

    status: list[RunStatus] = []
    tag: str = Field(default="", max_length=80)
    q: str = Field(default="", max_length=200)
    sort: Sorting = "created"
    order: Literal["asc", "desc"] = "desc"
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=50, ge=1, le=500)

    def wanted(self) -> Wanted:
        """The same for the store."""
        return Wanted(
            status=self.status or None,
            tag=self.tag or None,
            text=self.q,
            sort=self.sort,
            descending=self.order == "desc",
            offset=self.offset,
            limit=self.limit,
        )

    def filters(self) -> dict[str, Any]:
        """What of it links to other pages keep besides the order."""
        found = {"status": [each.value for each in self.status], "tag": self.tag, "q": self.q}
        return {name: value for name, value in found.items() if value}
