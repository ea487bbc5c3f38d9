"""The Spark engine: the same definition on a cluster, or on the cores of this machine.

Master and memory come from the environment (spark-defaults.conf, SPARK_HOME, PYSPARK_SUBMIT_ARGS), as for every Spark
program; a session that runs already is used and left running. Workers need this package, and the folder of batch views
under the same path as the driver.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import arrow_udf, expr

from pinrec_core.batch_job.definition import FUNCTIONS, ORDER, counted
from pinrec_core.batch_job.engine import EVENTS, LOG, VIEW_COLUMNS, Counted
from pinrec_core.batch_job.event_partitions import EventFolder, EventPartition
from pinrec_core.errors import InvalidData


class SparkEngine:
    """See `Engine`."""

    def __init__(self) -> None:
        self._owns = SparkSession.getActiveSession() is None
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else workers take whatever python3 is on the PATH
        builder = SparkSession.builder.appName("pinrec data batch-view")
        try:
            self._spark = builder.getOrCreate().newSession()  # settings and functions of our own
        except PySparkException as error:
            raise InvalidData(f"Spark cannot start: {_first_line(error)}") from error
        self._spark.conf.set("spark.sql.sources.partitionColumnTypeInference.enabled", "false")  # a day is a name
        for name, (function, _) in FUNCTIONS.items():
            self._spark.udf.register(name, arrow_udf(function, "bigint"))
        self._cleaned: DataFrame | None = None

    def __enter__(self) -> SparkEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cleaned is not None:
            self._cleaned.unpersist()
        if self._owns:
            self._spark.stop()

    def load(self, log: EventFolder, partitions: Sequence[EventPartition], cleaned: str) -> None:
        """See `Engine`. Raises InvalidData if a file cannot be read."""
        files = [log.url_of(path) for partition in partitions for path in partition.files]
        reader = self._spark.read.option("mergeSchema", "true")
        if log.is_partitioned:
            reader = reader.option("basePath", log.url_of(f"{log.root}/events"))
        try:
            reader.parquet(*files).createOrReplaceTempView(LOG)
            self._cleaned = self._spark.sql(cleaned).persist(StorageLevel.MEMORY_AND_DISK)
        except PySparkException as error:
            raise InvalidData(f"{log.url!r} cannot be read: {_first_line(error)}") from error
        self._cleaned.createOrReplaceTempView("cleaned")

    def counted(self) -> list[Counted]:
        """See `Engine`. Raises InvalidData if a file cannot be read."""
        try:
            return [Counted(*row) for row in self._spark.sql(counted("cleaned")).collect()]
        except PySparkException as error:
            raise InvalidData(f"the log cannot be read: {_first_line(error)}") from error

    def write(self, view: str, previous: Sequence[Path], out: Path) -> None:
        """See `Engine`."""
        events = self._spark.sql("SELECT * FROM cleaned WHERE fate IS NULL").select(*VIEW_COLUMNS)
        if previous:
            version = _url(previous[0].parents[1])
            earlier = self._spark.read.option("basePath", version).parquet(*map(_url, previous))
            events = events.unionByName(earlier.select(*VIEW_COLUMNS))
        events.createOrReplaceTempView(EVENTS)
        try:
            rows = self._spark.sql(view).repartition("bucket").sortWithinPartitions(*map(expr, ORDER))
            writer = rows.write.partitionBy("bucket").mode("append").option("compression", "zstd")
            writer.parquet(_url(out))
        except PySparkException as error:
            raise InvalidData(f"the batch view cannot be made: {_first_line(error)}") from error
        for path in out.rglob("*"):  # markers and checksums of Spark's own; the manifest has ours
            if path.is_file() and path.suffix != ".parquet":
                path.unlink()


def _url(path: Path) -> str:
    """Spark takes a path as it is; `as_uri` would escape the `=` of partitions."""
    return f"file://{path.absolute()}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
