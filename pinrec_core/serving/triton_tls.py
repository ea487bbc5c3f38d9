"""TLS to a Triton: PINREC_TRITON_TLS says for the whole stack whether Triton's gRPC port speaks it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pinrec_core.errors import InvalidConfig
from pinrec_core.serving.switch import is_on

TRITON_TLS = "PINREC_TRITON_TLS"


def triton_tls_is_on(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `TRITON_TLS` is 1. Raises InvalidConfig for anything but 0, 1 and nothing."""
    return is_on(TRITON_TLS, environ)


def triton_client_tls(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What tritonclient's gRPC clients take: the files that PINREC_CLIENT_CA, _CERT and _KEY name.

    Empty where Triton speaks without TLS. Raises InvalidConfig.
    """
    if not triton_tls_is_on(environ):
        return {}
    ca = environ.get("PINREC_CLIENT_CA")
    if not ca:
        raise InvalidConfig(f"{TRITON_TLS} is 1 without PINREC_CLIENT_CA; allowed: both, or {TRITON_TLS}=0")
    return {
        "ssl": True,
        "root_certificates": ca,
        "private_key": environ.get("PINREC_CLIENT_KEY") or None,
        "certificate_chain": environ.get("PINREC_CLIENT_CERT") or None,
    }
