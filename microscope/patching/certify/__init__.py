"""Proof that an export does what the patch did: measured on the reloaded files."""

from microscope.patching.certify.certificate import Certificate, certify
from microscope.patching.certify.gates import Gate
from microscope.patching.certify.report import headline, html_certificate, write_certificate

__all__ = ["Certificate", "Gate", "certify", "headline", "html_certificate", "write_certificate"]
