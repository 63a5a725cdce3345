"""The task of the other side. Runs in the environment of requirements.lock, not in ours."""

from __future__ import annotations

import os

from celery import Celery

URL = os.environ["BENCH_REDIS_URL"]

app = Celery("celery_app", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,  # a task survives its worker, as ours does
    task_track_started=False,
    worker_prefetch_multiplier=64,  # the default of 4 gave a fifth less here
    broker_connection_retry_on_startup=True,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    result_expires=3600,
)


@app.task(name="noop")  # type: ignore[untyped-decorator]
def noop() -> None:
    """Nothing."""
