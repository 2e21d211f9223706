"""Requests to addresses that people type in, which must not reach what only this server can reach.

The name is resolved once, every address it has must be public, and the connection goes to an address that
was checked: a name that changes its answer in between gains nothing. Redirects are answers, not followed.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from apps.core.errors import Refused

TIMEOUT = 10.0
SIGNATURE = "X-Workbench-Signature"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Unreachable(Exception):
    """The message could not be handed over; trying again may help.

    What it says is read by the owner of a project, and says nothing that only this server's network knows; the
    exception it is raised from has the details, for the log.
    """


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, also when it wraps an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def check_url(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of a URL that may be called, as far as it can be told without asking DNS.

    Raises:
        Refused: ``bad_url`` or ``private_address``.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad_url("It cannot be read.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _bad_url("Use https:// and a host name.")
    if parts.username or parts.password:
        raise _bad_url("A name or password does not belong into an address.")
    try:
        literal = ipaddress.ip_address(parts.hostname)
    except ValueError:
        pass
    else:
        _require_public(parts.hostname, [literal])
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(letter) <= 32 or ord(letter) > 126 for letter in path):
        raise _bad_url("It has characters that must be percent-encoded.")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path


def resolve(host: str, port: int) -> str:
    """An address of the host that may be called.

    Raises:
        Unreachable: the name has no address, or one that is not public. Which of the two is not told: names of an
            inner network could be tried otherwise.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        _require_public(host, addresses)
        return str(addresses[0])
    except (OSError, UnicodeError, IndexError, Refused) as error:
        raise Unreachable(f"The name {host} has no address on the open internet.") from error


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Send a POST and return the status of the answer, whose body is not read.

    Raises:
        Refused: the address is not one to be called.
        Unreachable: no connection, or no answer in time.
    """
    scheme, host, port, path = check_url(url)
    address = resolve(host, port)
    connection = _Pinned(host, port, address, secure=scheme == "https")
    try:
        connection.request("POST", path, body=body, headers=headers)
        return connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"{host} {_in_words(error)}.") from error
    finally:
        connection.close()


def _in_words(error: Exception) -> str:
    """Why there was no answer, without what certificates, sockets and the system say in their own words."""
    if isinstance(error, ssl.SSLError):
        return "showed no certificate that can be trusted"
    if isinstance(error, TimeoutError):
        return f"did not answer within {TIMEOUT:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection"
    if isinstance(error, http.client.HTTPException):
        return "did not answer in HTTP"
    return "could not be reached"


def signature(secret: str, body: bytes, timestamp: int | None = None) -> str:
    """``t=<unix time>,v1=<hex HMAC-SHA256 of "t.body">``: proves who sent the body, and when."""
    moment = int(time.time()) if timestamp is None else timestamp
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


class _Pinned(http.client.HTTPConnection):
    """A connection to an address chosen beforehand, under the name it stands for."""

    def __init__(self, host: str, port: int, address: str, *, secure: bool) -> None:
        super().__init__(host, port, timeout=TIMEOUT)
        self._address = address
        self._context = ssl.create_default_context() if secure else None
        if secure:
            self.default_port = 443  # so that the Host header leaves it out

    def connect(self) -> None:
        """Open the socket without asking DNS again."""
        sock: Any = socket.create_connection((self._address, self.port), self.timeout)
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_hostname=self.host)
        self.sock = sock


def _require_public(host: str, addresses: list[Address]) -> None:
    if settings.WORKBENCH_WEBHOOK_PRIVATE:
        return
    for address in addresses:
        if not is_public(address):
            raise Refused(
                "private_address",
                f"{host} is {address}, which is not an address of the open internet.",
                "Use a public address, or ask an administrator for WORKBENCH_WEBHOOK_PRIVATE.",
                status=400,
                attr="url",
            )


def _bad_url(reason: str) -> Refused:
    return Refused("bad_url", f"This is no address that can be called. {reason}", status=400, attr="url")
