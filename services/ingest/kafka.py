"""The ingest process: events of a Kafka topic go to the signal service.

python -m services.ingest.kafka --brokers HOST:PORT --topic events --group pinrec --signals HOST:PORT
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from prometheus_client import start_http_server

from pinrec_core.errors import PinrecError
from services.common.logs import configure_logging, log_format_option
from services.common.metrics import IngestMetrics, process_registry
from services.ingest.messages import READERS
from services.signals.validate import MAX_EVENTS

_SECRET = re.compile(r"password|secret|oauthbearer\.config|key\.pem")
"""In names of librdkafka's settings: what must not stand on a command line, which every user of the host can read."""


def _pairs(context: click.Context, option: click.Parameter, words: tuple[str, ...]) -> dict[str, str]:
    pairs = _split(words)
    for key in pairs:
        if _SECRET.search(key):
            raise click.BadParameter(f"{key} is a secret; allowed: in the file of --settings")
    return pairs


def _of_file(context: click.Context, option: click.Parameter, path: Path | None) -> dict[str, str]:
    lines = path.read_text().splitlines() if path is not None else []
    return _split([line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")])


def _split(words: Sequence[str]) -> dict[str, str]:
    for place, word in enumerate(words, start=1):
        if "=" not in word:
            raise click.BadParameter(f"the setting in place {place} is not KEY=VALUE")  # it may be a secret
    return {key.strip(): value.strip() for key, value in (word.split("=", 1) for word in words)}


@click.command(name="kafka")
@click.option("--brokers", required=True, metavar="HOST:PORT,...", help="Kafka's bootstrap servers.")
@click.option("--topic", required=True, help="Topic whose messages are one event each.")
@click.option("--group", required=True, help="Consumer group; its members share the topic's partitions.")
@click.option("--signals", required=True, envvar="PINREC_SIGNALS", metavar="HOST:PORT", help="The signal service.")
@click.option(
    "--format",
    "form",
    default="proto",
    show_default=True,
    type=click.Choice(tuple(READERS)),
    help="A message is a serialized pinrec.v1.Event, or the JSON of one.",
)
@click.option("--dead-letter", default="", help="Topic for messages that can never be accepted; none = logged.")
@click.option(
    "--batch",
    "batch_size",
    default=500,
    show_default=True,
    type=click.IntRange(1, MAX_EVENTS),
    help="Most events of one append.",
)
@click.option(
    "--linger",
    "linger_s",
    default=0.05,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait for a fuller batch.",
)
@click.option(
    "--set", "settings", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="Any other setting of librdkafka."
)
@click.option(
    "--settings",
    "settings_file",
    envvar="PINREC_KAFKA_SETTINGS",
    show_envvar=True,
    callback=_of_file,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of more such settings, a line each: where passwords belong.",
)
@click.option("--metrics-host", default="localhost", show_default=True, help="Address of Prometheus metrics.")
@click.option("--metrics-port", default=9800, show_default=True, help="Their port; 0 = none.")
@log_format_option
def main(
    metrics_host: str,
    metrics_port: int,
    log_format: str,
    settings: dict[str, str],
    settings_file: dict[str, str],
    **options: Any,
) -> None:
    """Append the events of a Kafka topic to the signal service, each exactly once.

    Offsets are committed after the service has made the events durable. While it is away the consumer waits and tries
    again; no message is passed over, except one that can never be accepted. Equal events without an event_id are one
    event. SIGTERM finishes the batch and leaves the group.
    """
    configure_logging("ingest", log_format)
    try:
        from services.ingest.consumer import EventConsumer, IngestOptions
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'pinrec[kafka]'") from error
    registry = process_registry()
    try:
        options["settings"] = {**settings_file, **settings}
        consumer = EventConsumer(IngestOptions(**options), IngestMetrics(registry))
    except PinrecError as error:
        raise click.ClickException(error.message) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: consumer.stop())
    if metrics_port:
        start_http_server(metrics_port, addr=metrics_host, registry=registry)
    consumer.run()


if __name__ == "__main__":
    main()
