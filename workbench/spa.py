"""The browser application: one page for every path that is not the server's own, and signing in for all of it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, HttpResponseRedirect
from django.shortcuts import render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_safe


@require_safe
@ensure_csrf_cookie
def spa(request: HttpRequest) -> HttpResponse:
    """``index.html`` of the build, or a page that says how to make one."""
    index = Path(settings.WORKBENCH_FRONTEND_DIR) / "index.html"
    try:
        page = index.read_text(encoding="utf-8")
    except OSError:
        return render(request, "frontend_missing.html", status=503)
    response = HttpResponse(page)
    # Its assets carry hashes and are cached for ever; the page that names them must always be fresh.
    response["Cache-Control"] = "no-cache"
    return response


def admin_sign_in(request: HttpRequest) -> HttpResponse:
    """The administration has no form of its own: that would be a way around the second factor."""
    wanted = request.GET.get("next", "")
    target = wanted if url_has_allowed_host_and_scheme(wanted, allowed_hosts=None) else "/admin/"
    if not request.user.is_authenticated:
        return HttpResponseRedirect(f"/login?{urlencode({'next': target})}")
    if not request.user.is_staff:
        return HttpResponseForbidden("The administration is for staff.", content_type="text/plain")
    return HttpResponseRedirect(target)
