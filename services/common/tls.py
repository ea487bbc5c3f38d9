"""TLS of our gRPC ports: credentials of a server, which follow renewed certificates, and of a client."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from pinrec_core.errors import InvalidConfig

CLIENT_CA = "PINREC_CLIENT_CA"
CLIENT_CERT = "PINREC_CLIENT_CERT"
CLIENT_KEY = "PINREC_CLIENT_KEY"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one side. `ca` is whom it trusts; `names` say in errors where each of the three was given."""

    cert: Path | None
    key: Path | None
    ca: Path | None
    names: tuple[str, str, str]

    def check(self) -> None:
        """Raise InvalidConfig, naming the setting, for files that are missing, unreadable or do not fit together."""
        cert_name, key_name, ca_name = self.names
        if (self.cert is None) != (self.key is None):
            given, missing = (cert_name, key_name) if self.key is None else (key_name, cert_name)
            raise InvalidConfig(f"{given} is set without {missing}; allowed: both or neither")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.cert is not None and self.key is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")  # without one it would ask the terminal
            except (OSError, ValueError) as error:  # SSLError is an OSError
                value = f"{cert_name} has value {str(self.cert)!r} and {key_name} {str(self.key)!r}"
                allowed = "PEM files of a certificate chain and of its key, not encrypted"
                raise InvalidConfig(f"{value}; allowed: {allowed} ({error})") from error
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except (OSError, ValueError) as error:
                value = f"{ca_name} has value {str(self.ca)!r}"
                raise InvalidConfig(f"{value}; allowed: a PEM file of trusted certificates ({error})") from error

    def pair(self) -> tuple[bytes, bytes] | None:
        """Key and certificate chain, as gRPC wants them; None without any."""
        if self.cert is None or self.key is None:
            return None
        return self.key.read_bytes(), self.cert.read_bytes()

    def roots(self) -> bytes | None:
        """Whom this side trusts."""
        return None if self.ca is None else self.ca.read_bytes()

    def state(self) -> Sequence[tuple[int, int]]:
        """Changes when any of the files is written or replaced. Raises OSError."""
        stats = [path.stat() for path in (self.cert, self.key, self.ca) if path is not None]
        return [(stat.st_mtime_ns, stat.st_ino) for stat in stats]


def server_credentials(cert: Path | None, key: Path | None, client_ca: Path | None) -> grpc.ServerCredentials | None:
    """Credentials of a listening port, None without a certificate. With `client_ca` a client must show its own.

    The files are looked at again for each new connection, so a renewed certificate needs no restart. Raises
    InvalidConfig for files that cannot be used.
    """
    files = TlsFiles(cert, key, client_ca, ("--tls-cert", "--tls-key", "--tls-client-ca"))
    files.check()
    if cert is None:
        if client_ca is not None:
            raise InvalidConfig("--tls-client-ca is set without --tls-cert; allowed: only together with one")
        return None
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), _Renewed(files).fetch, require_client_authentication=client_ca is not None
    )


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([files.pair()], files.roots())


class _Renewed:
    """Hands gRPC the files anew when they have changed; called on its threads, once for each connection."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._state = files.state()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """None = go on with those in use; so too while a new certificate and its key do not fit yet."""
        try:
            state = self._files.state()
            if state == self._state:
                return None
            self._files.check()
            renewed = _configuration(self._files)
        except (OSError, InvalidConfig) as error:
            log.error("the certificate in use stays: %s", error)
            return None
        self._state = state
        log.info("certificate read anew")
        return renewed


def client_files(environ: Mapping[str, str] = os.environ) -> TlsFiles | None:
    """What PINREC_CLIENT_CA, _CERT and _KEY name; None = the client speaks without TLS. Raises InvalidConfig."""
    ca, cert, key = (
        Path(value) if (value := environ.get(name)) else None for name in (CLIENT_CA, CLIENT_CERT, CLIENT_KEY)
    )
    files = TlsFiles(cert, key, ca, (CLIENT_CERT, CLIENT_KEY, CLIENT_CA))
    files.check()
    if ca is None:
        if cert is not None:
            raise InvalidConfig(f"{CLIENT_CERT} is set without {CLIENT_CA}; allowed: only together with it")
        return None
    return files


def client_credentials(environ: Mapping[str, str] = os.environ) -> grpc.ChannelCredentials | None:
    """Credentials of a channel by `client_files`; None = without TLS. Raises InvalidConfig."""
    files = client_files(environ)
    if files is None:
        return None
    key, cert = files.pair() or (None, None)
    return grpc.ssl_channel_credentials(files.roots(), key, cert)
