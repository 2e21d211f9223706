"""Two-factor sign-in: its secrets encrypted, its QR code as a picture."""

from __future__ import annotations

import base64
import hashlib
import io

from allauth.mfa.adapter import DefaultMFAAdapter
from cryptography.fernet import Fernet, MultiFernet
from django.conf import settings


def _keys() -> MultiFernet:
    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    digests = [hashlib.sha256(b"second factor\0" + str(secret).encode()).digest() for secret in secrets]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(digest)) for digest in digests])


class MFAAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Keeps the secrets of authenticators encrypted with the site's secret key (or a former one)."""

    def encrypt(self, text: str) -> str:
        """What is stored."""
        return _keys().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """The secret again."""
        return _keys().decrypt(encrypted_text.encode()).decode()


def qr_svg(text: str) -> bytes:
    """The text as a QR code on a white ground, readable in dark pages, too."""
    import qrcode
    from qrcode.image.svg import SvgPathFillImage

    picture = io.BytesIO()
    qrcode.make(text, image_factory=SvgPathFillImage, border=2).save(picture)
    return picture.getvalue()
