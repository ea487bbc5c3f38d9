"""The ingest process: events of a Kafka topic go to the signal service.

python -m services.ingest.kafka --brokers HOST:PORT --topic events --group pinrec --signals HOST:PORT
"""

from __future__ import annotations

import signal
from typing import Any

import click
from prometheus_client import start_http_server

from pinrec_core.errors import PinrecError
from services.common.logs import configure_logging, log_format_option
from services.common.metrics import IngestMetrics, process_registry
from services.ingest.messages import READERS
from services.signals.validate import MAX_EVENTS


def _pairs(context: click.Context, option: click.Parameter, words: tuple[str, ...]) -> dict[str, str]:
    for word in words:
        if "=" not in word:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE")
    return dict(word.split("=", 1) for word in words)


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
@click.option("--metrics-host", default="localhost", show_default=True, help="Address of Prometheus metrics.")
@click.option("--metrics-port", default=9800, show_default=True, help="Their port; 0 = none.")
@log_format_option
def main(metrics_host: str, metrics_port: int, log_format: str, **options: Any) -> None:
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
