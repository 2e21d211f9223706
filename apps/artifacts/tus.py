"""Uploads over REST: tus 1.0, so that every client of the protocol works; JSON beside it for typed clients."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from typing import IO, Any, ClassVar
from uuid import UUID

from django.urls import reverse
from django.utils.http import http_date
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.permissions import TokenScopes
from apps.accounts.scopes import Scope
from apps.artifacts import uploads
from apps.artifacts.models import Upload
from apps.core.errors import Refused
from apps.core.parsers import JSONParser
from apps.core.schema import ErrorResponseSerializer
from apps.core.views import VisibleViewSet

VERSION = "1.0.0"
PIECE = "application/offset+octet-stream"
_EXTENSIONS = "creation,checksum,expiration,termination"
_READ = 1 << 20
_IN_MEMORY = 2 << 20
_LARGEST = 2**62


class UploadSerializer(serializers.ModelSerializer[Upload]):
    """A file on its way in. ``offset`` is how many bytes have arrived; one ``in_use`` belongs to a job."""

    offset = serializers.IntegerField(read_only=True, source="count_received")
    complete = serializers.BooleanField(read_only=True, source="is_complete")
    in_use = serializers.BooleanField(read_only=True, source="held")

    class Meta:
        model = Upload
        fields = ("id", "path", "bytes", "offset", "complete", "in_use", "sha256", "expires_at", "created_at")
        read_only_fields = fields


class UploadCreateSerializer(serializers.Serializer[Any]):
    """A file to be sent. ``path`` is its place in its folder."""

    path = serializers.CharField(max_length=500)
    bytes = serializers.IntegerField(min_value=0, max_value=_LARGEST)
    sha256 = serializers.RegexField(
        r"^[0-9a-fA-F]{64}\Z",
        required=False,
        allow_blank=True,
        default="",
        help_text="Checked when all of it is there.",
    )


class PieceParser(BaseParser):
    """Says that pieces are accepted; they are read from the request itself, never parsed."""

    media_type = PIECE

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        """Nothing."""
        return {}


class UploadViewSet(mixins.ListModelMixin, VisibleViewSet):
    """The user's uploads."""

    model = Upload
    serializer_class = UploadSerializer
    parser_classes = (JSONParser, PieceParser)
    filter_backends = ()
    token_scopes: ClassVar[TokenScopes] = {
        "create": Scope.ARTIFACTS,
        "partial_update": Scope.ARTIFACTS,
        "destroy": Scope.ARTIFACTS,
    }

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Every answer says which protocol it speaks."""
        response["Tus-Resumable"] = VERSION
        return super().finalize_response(request, response, *args, **kwargs)

    def options(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        """What this server can do."""
        return Response(
            status=status.HTTP_204_NO_CONTENT,
            headers={
                "Tus-Version": VERSION,
                "Tus-Extension": _EXTENSIONS,
                "Tus-Max-Size": str(uploads.max_bytes()),
                "Tus-Checksum-Algorithm": ",".join(uploads.CHECKSUMS),
            },
        )

    @extend_schema(
        request=UploadCreateSerializer, responses={201: UploadSerializer, 412: ErrorResponseSerializer}
    )
    def create(self, request: Request) -> Response:
        """Announce a file, by JSON or by the headers ``Upload-Length`` and ``Upload-Metadata``."""
        _check_version(request)
        announced = _announced(request) if "Upload-Length" in request.headers else request.data
        data = UploadCreateSerializer(data=announced)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        upload = uploads.create_upload(
            actor=self.actor, path=values["path"], size=values["bytes"], sha256=values["sha256"]
        )
        answer = Response(UploadSerializer(upload).data, status=status.HTTP_201_CREATED)
        answer["Location"] = reverse("upload-detail", kwargs={"pk": upload.pk})
        return _with_offset(answer, upload)

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """How far it is; with HEAD, in headers only."""
        upload: Upload = self.get_object()
        answer = _with_offset(Response(UploadSerializer(upload).data), upload)
        answer["Cache-Control"] = "no-store"
        return answer

    @extend_schema(
        request={PIECE: OpenApiTypes.BINARY},
        responses={204: None, 410: ErrorResponseSerializer, 460: ErrorResponseSerializer},
        parameters=[
            OpenApiParameter(
                "Upload-Offset", int, OpenApiParameter.HEADER, required=True, description="Bytes sent before."
            ),
            OpenApiParameter(
                "Upload-Checksum", str, OpenApiParameter.HEADER, description="`sha256 <base64>` of the piece."
            ),
        ],
    )
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Send the next piece."""
        upload: Upload = self.get_object()
        _check_version(request)
        if (request.content_type or "").split(";")[0].strip() != PIECE:
            raise Refused("wrong_content_type", f"Pieces are sent as {PIECE}.", status=415)
        checksum = uploads.parse_checksum(request.headers.get("Upload-Checksum", ""))
        offset = _number(request, "Upload-Offset")
        if int(request.headers.get("Content-Length") or 0) > uploads.chunk_bytes():
            raise uploads.chunk_too_large(int(request.headers["Content-Length"]))
        with _piece(request) as body:
            upload_offset = uploads.append(
                actor=self.actor, upload=upload, offset=offset, body=body, checksum=checksum
            )
        answer = Response(status=status.HTTP_204_NO_CONTENT)
        answer["Upload-Offset"] = str(upload_offset)
        return answer

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Cancel it."""
        uploads.cancel_upload(actor=self.actor, upload=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)


def _piece(request: Request) -> IO[bytes]:
    """The body, on disk beyond two MiB, at most one piece long."""
    body = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (the caller closes it)
    size, source = 0, request._request
    while data := source.read(_READ):
        size += len(data)
        if size > uploads.chunk_bytes():
            body.close()
            raise uploads.chunk_too_large(size)
        body.write(data)
    return body


def _check_version(request: Request) -> None:
    wanted = request.headers.get("Tus-Resumable")
    if wanted is not None and wanted != VERSION:
        raise Refused("wrong_protocol", f"This server speaks tus {VERSION}.", status=412)


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Refused("bad_header", f"The header {header} must be a number of bytes.", status=400)
    return int(text)


def _announced(request: Request) -> dict[str, Any]:
    """What the headers of the protocol announce. A path may come as ``path``, ``relativePath`` or ``filename``."""
    found: dict[str, str] = {}
    for pair in filter(None, request.headers.get("Upload-Metadata", "").split(",")):
        name, _, encoded = pair.strip().partition(" ")
        try:
            found[name] = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise Refused(
                "bad_header",
                "The header Upload-Metadata cannot be read.",
                "Send 'name base64' pairs.",
                status=400,
            ) from error
    path = found.get("path") or found.get("relativePath") or found.get("filename") or ""
    return {"path": path, "bytes": _number(request, "Upload-Length"), "sha256": found.get("sha256", "")}


def _with_offset(answer: Response, upload: Upload) -> Response:
    answer["Upload-Offset"] = str(upload.count_received())
    answer["Upload-Length"] = str(upload.bytes)
    answer["Upload-Expires"] = http_date(upload.expires_at.timestamp())
    return answer
