"""Where a service without keys may listen, and as whom it is asked: on and as this machine only, unless its
operator says otherwise.
"""

from __future__ import annotations

import ipaddress
import re
import socket

_HOST = re.compile(r"(\[[^]]*\]|[^:]*)(:\d*)?")


class ExposedError(Exception):
    """The service would be open to everybody; the message says what to do."""


def check_exposure(host: str, *, keys: bool, anonymous: bool) -> None:
    """Raise ExposedError for a `host` beyond loopback without keys, unless `anonymous` access is meant."""
    if keys or anonymous or is_loopback(host):
        return
    raise ExposedError(
        f"without API keys the service does not listen on {host or 'every address'}, where others reach it: "
        "make a key with `eqnet keys add NAME --scope build`, or set EQNET_API_KEYS or EQNET_API_KEYS_FILE, "
        "or set EQNET_ALLOW_ANONYMOUS=true to let everybody in"
    )


def is_loopback(host: str) -> bool:
    """Whether every address that `host` means is this machine's own. Names that mean nothing are not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)} if host else set()
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)


def names_loopback(host: str) -> bool:
    """Whether a `Host` header, with or without a port, means this machine whatever a name server says."""
    found = _HOST.fullmatch(host.lower())
    name = "" if found is None else found[1].removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
