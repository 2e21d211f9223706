"""One-shot questions to resident workers over REST."""

from __future__ import annotations

from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.live import services
from apps.live.serializers import AttachedSerializer, InferenceRequestSerializer, InferenceSerializer
from apps.saes.models import Sae
from microscope.protocol import SaeAttached


class InferenceView(APIView):
    """Asks a loaded model."""

    @extend_schema(
        operation_id="inference", request=InferenceRequestSerializer, responses=InferenceSerializer
    )
    def post(self, request: Request) -> Response:
        """The next token of a prompt, unpatched and patched. For many toggles use the live socket."""
        data = InferenceRequestSerializer(data=request.data, context={"request": request})
        data.is_valid(raise_exception=True)
        answer = services.infer(actor=request.user, **data.validated_data)
        result = answer.result
        patches = [(patch, True) for patch in answer.applied] + [(patch, False) for patch in answer.skipped]
        shown = {
            "prompt": answer.opened.prompt,
            "tokens": result.tokens,
            "kl": result.kl,
            "entropy_base": result.entropy_base,
            "entropy_patched": result.entropy_patched,
            "receipt": result.receipt,
            "timings": result.timings,
            "patches": [
                {"id": patch.pk, "name": patch.name, "version": patch.version, "applied": applied}
                for patch, applied in patches
            ],
        }
        return Response(InferenceSerializer(shown).data)


class AttachView(APIView):
    """Loads an SAE beside its model."""

    @extend_schema(
        operation_id="saes_attach",
        request=None,
        responses={200: AttachedSerializer, 202: AttachedSerializer},
    )
    def post(self, request: Request, pk: UUID) -> Response:
        """Have the resident worker of the SAE's model load it now; live sessions also do it by themselves.

        200 when it is there. 202 when it is still being read after two seconds: the live socket of the model says
        ``attached`` when that has ended, and the same request may be sent again until then.
        """
        rows = Sae.objects.visible_to(request.user).select_related("artifact", "model")
        sae = get_object_or_404(rows, pk=pk)
        found = services.attach_sae(actor=request.user, sae=sae)
        attached = isinstance(found, SaeAttached)
        shown = {
            "state": "attached" if attached else "attaching",
            "sae": sae.fingerprint,
            "site": f"{sae.site}.{sae.layer}",
            "n_latents": sae.width,
        }
        return Response(
            AttachedSerializer(shown).data,
            status=status.HTTP_200_OK if attached else status.HTTP_202_ACCEPTED,
        )
