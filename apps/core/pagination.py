"""Pages of lists: by number for short ones, by keyset cursor for long ones."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
from django.db.models import F, Model, Q
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import BasePagination, PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param
from rest_framework.views import APIView


class Pages(PageNumberPagination):
    """Numbered pages with a total."""

    page_size = 100
    page_size_query_param = "page_size"
    max_page_size = 500


class _Cursor(msgspec.Struct, array_like=True):
    ordering: str
    backwards: bool
    value: float
    index: int


class KeysetPages(BasePagination):
    """Pages that start after a row instead of at an offset: page 600 costs what page 1 costs.

    The view says in ``ordering_fields`` what may be sorted by; each must be a number that is never
    null, and ``tie_breaker`` a whole number that is unique in the list. The REST framework's own cursor
    gives up when more than a thousand rows share a value, as the dead features of an SAE do.

    With a parameter of the view's ``scanning_filters`` every row is read, whatever the order: then it is read
    once, in the order of ``tie_breaker``, for the count and the page together.
    """

    page_size = 100
    max_page_size = 1000
    cursor_query_param = "cursor"
    page_size_query_param = "page_size"
    ordering_query_param = "ordering"

    def paginate_queryset(self, queryset: Any, request: Request, view: APIView | None = None) -> list[Any]:
        """The rows of the page.

        Raises:
            ValidationError: unknown ordering or page size.
            NotFound: a cursor this list did not issue.
        """
        allowed: tuple[str, ...] = getattr(view, "ordering_fields", ())
        self.tie: str = getattr(view, "tie_breaker", "index")
        self.request = request
        ordering = request.query_params.get(self.ordering_query_param) or allowed[0]
        name = ordering.removeprefix("-")
        if name not in allowed:
            raise ValidationError(
                {self.ordering_query_param: f"Use one of {', '.join(allowed)}, or with a minus."}
            )
        self.ordering, self.name = ordering, name
        size = self._size(request)
        cursor = self._decode(request.query_params.get(self.cursor_query_param), ordering)
        descending = ordering.startswith("-") != (cursor is not None and cursor.backwards)
        if any(request.query_params.get(name) for name in getattr(view, "scanning_filters", ())):
            rows = self._scan(queryset, cursor, descending, size + 1)
        else:
            rows = self._seek(queryset, cursor, descending, size + 1)
        more = len(rows) > size
        rows = rows[:size]
        backwards = cursor is not None and cursor.backwards
        if backwards:
            rows.reverse()
        has_next = more if not backwards else True
        has_previous = more if backwards else cursor is not None
        self.next = self._encode(rows[-1], backwards=False) if rows and has_next else None
        self.previous = self._encode(rows[0], backwards=True) if rows and has_previous else None
        return rows

    def _seek(self, queryset: Any, cursor: _Cursor | None, descending: bool, most: int) -> list[Any]:
        """The rows from the cursor on, by an index in their order."""
        self.count = queryset.count()
        if cursor is not None:
            queryset = queryset.filter(self._beyond(cursor, descending))
        # Ties always follow the sort direction, so that one index serves both.
        names = dict.fromkeys((self.name, self.tie))
        order = [F(name).desc() if descending else F(name).asc() for name in names]
        return list(queryset.order_by(*order)[:most])

    def _scan(self, queryset: Any, cursor: _Cursor | None, descending: bool, most: int) -> list[Any]:
        """The same from one pass over all rows; only those of the page are fetched whole."""
        keys = list(queryset.order_by(self.tie).values_list(self.name, self.tie))
        self.count = len(keys)
        if cursor is not None:
            start = (cursor.value, cursor.index)
            keys = [key for key in keys if (key < start if descending else key > start)]
        chosen = [tie for _, tie in sorted(keys, reverse=descending)[:most]]
        rows = {getattr(row, self.tie): row for row in queryset.filter(**{f"{self.tie}__in": chosen})}
        return [rows[tie] for tie in chosen if tie in rows]

    def _beyond(self, cursor: _Cursor, descending: bool) -> Q:
        way = "lt" if descending else "gt"
        if self.name == self.tie:
            return Q(**{f"{self.name}__{way}": cursor.index})
        # The first condition alone bounds the index scan; the second drops what was already shown.
        return Q(**{f"{self.name}__{way}e": cursor.value}) & (
            Q(**{f"{self.name}__{way}": cursor.value}) | Q(**{f"{self.tie}__{way}": cursor.index})
        )

    def _size(self, request: Request) -> int:
        raw = request.query_params.get(self.page_size_query_param)
        if raw is None:
            return self.page_size
        if not raw.isdecimal() or not 1 <= int(raw) <= self.max_page_size:
            raise ValidationError(
                {self.page_size_query_param: f"Use a number from 1 to {self.max_page_size}."}
            )
        return int(raw)

    def _encode(self, row: Model, *, backwards: bool) -> str:
        cursor = _Cursor(self.ordering, backwards, float(getattr(row, self.name)), getattr(row, self.tie))
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode()

    @staticmethod
    def _decode(text: str | None, ordering: str) -> _Cursor | None:
        if not text:
            return None
        try:
            cursor = msgspec.msgpack.decode(base64.urlsafe_b64decode(text.encode()), type=_Cursor)
        except (binascii.Error, ValueError, msgspec.MsgspecError):
            raise NotFound("This cursor is not one of this list.") from None
        if cursor.ordering != ordering:
            raise NotFound("This cursor belongs to another ordering.")
        return cursor

    def _link(self, cursor: str | None) -> str | None:
        if cursor is None:
            return None
        return replace_query_param(self.request.build_absolute_uri(), self.cursor_query_param, cursor)

    def get_paginated_response(self, data: Any) -> Response:
        """``{count, next, previous, results}``."""
        return Response(
            {
                "count": self.count,
                "next": self._link(self.next),
                "previous": self._link(self.previous),
                "first": remove_query_param(self.request.build_absolute_uri(), self.cursor_query_param),
                "results": data,
            }
        )

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The same for OpenAPI."""
        link = {"type": ["string", "null"], "format": "uri"}
        return {
            "type": "object",
            "required": ["count", "next", "previous", "first", "results"],
            "properties": {
                "count": {"type": "integer", "description": "Rows that match the filters."},
                "next": link,
                "previous": link,
                "first": {"type": "string", "format": "uri"},
                "results": schema,
            },
        }

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        """Query parameters for OpenAPI."""
        allowed = getattr(view, "ordering_fields", ())
        both = [word for name in allowed for word in (name, f"-{name}")]
        return [
            _parameter(
                self.cursor_query_param, "Where the page starts; copy it from `next`.", {"type": "string"}
            ),
            _parameter(
                self.page_size_query_param,
                "Rows per page.",
                {"type": "integer", "minimum": 1, "maximum": self.max_page_size, "default": self.page_size},
            ),
            _parameter(
                self.ordering_query_param,
                "Sorted by; a minus turns it round.",
                {"type": "string", "enum": both},
            ),
        ]


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
