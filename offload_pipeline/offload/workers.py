"""Several workers on one pass: each on a thread of its own, all stopped by the first that fails."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed


def run_workers(work: Callable[[], None], stop: Callable[[], None], count: int) -> None:
    """Calls `work` on `count` threads; when one raises, or on an interrupt, `stop` is called, and the others end.

    Raises what the first of them raised, after all have ended.
    """
    with ThreadPoolExecutor(count, "worker") as threads:
        futures: list[Future[None]] = [threads.submit(work) for _ in range(count)]
        try:
            for future in as_completed(futures):
                if future.exception():
                    stop()
        finally:
            # Interrupted, the batches in flight are finished and no others begun.
            stop()
    for future in futures:
        future.result()
