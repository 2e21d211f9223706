"""msgspec structs inside REST serializers, so that one declaration serves code, OpenAPI and TypeScript."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from rest_framework import serializers


class StructField(serializers.Field[Any, Any, Any, Any]):
    """A JSON value that must have the shape of a msgspec type.

    Args:
        struct: the type; values are read into it and written from it or from plain JSON data.
    """

    def __init__(self, struct: Any, **kwargs: Any) -> None:
        self.struct = struct
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> Any:
        """Read the struct; a value that does not fit is a validation error that says where."""
        try:
            return msgspec.convert(data, type=self.struct)
        except msgspec.ValidationError as error:
            raise serializers.ValidationError(f"{error}.", code="invalid") from error

    def to_representation(self, value: Any) -> Any:
        """Plain JSON data, complete also where it was stored before a field existed."""
        return msgspec.to_builtins(msgspec.convert(value, type=self.struct))


class StructList(serializers.ListSerializer[Any]):
    """A response that is a list of structs."""

    def to_representation(self, data: Any) -> Any:
        """Plain JSON data."""
        assert isinstance(self.child, StructSerializer)
        return msgspec.to_builtins(self.child.build_many(data), str_keys=True)


class StructSerializer(serializers.BaseSerializer[Any]):
    """A response that is one msgspec struct; subclasses say which and how it is built."""

    struct: Any = None

    class Meta:
        list_serializer_class = StructList

    @classmethod
    def build(cls, instance: Any) -> Any:
        """The struct of an instance; by default the instance is one."""
        return instance

    @classmethod
    def build_many(cls, instances: Iterable[Any]) -> list[Any]:
        """The structs of a list; to be overridden where many together cost less."""
        return [cls.build(instance) for instance in instances]

    def to_representation(self, instance: Any) -> Any:
        """Plain JSON data."""
        return msgspec.to_builtins(self.build_many([instance])[0], str_keys=True)
