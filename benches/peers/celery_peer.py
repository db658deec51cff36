# Celery, by the command line of README.md. With --results: late acknowledgement (acks_late), publisher confirms
# (RabbitMQ), and for each job a key celery-task-meta-<id> in that Redis for a day, announced by a PUBLISH. Without:
# Celery's own defaults, which acknowledge before the work and store nothing; a killed worker's jobs are lost.
# It stores no claim, no attempt count, no cost; a copy of a job that ran is run again.
import sys
import threading

from celery import Celery
from celery.signals import task_postrun
from celery.worker import state
from kombu.asynchronous import get_event_loop

import meter

args = meter.command_line()
with_results = bool(args.results)
app = Celery("peers", broker=args.url, backend=args.results)
app.conf.update(
    task_acks_late=with_results,
    task_ignore_result=not with_results,
    broker_transport_options={"confirm_publish": True} if with_results and args.url.startswith("amqp") else {},
    broker_connection_retry_on_startup=True,
    task_default_queue=f"celery-{args.queue}",
    task_default_queue_type=args.queue,
    # Many are on their way: the default of 4 waits for the broker more often.
    worker_prefetch_multiplier=128,
    worker_redirect_stdouts=False,
)


@app.task(name="job")
def job(sent):
    clock.started(sent)
    return meter.result()


def work():
    # Once the result is stored, as the acknowledgement is handed to Celery's loop, which sends the last few only when it
    # wakes up next, up to 10 s later: that wait is not counted.
    task_postrun.connect(lambda **_: clock.settled(), weak=False)
    threading.Thread(target=leave).start()
    # In its own process, one job at a time: faster here than with processes or green threads beside it.
    worker = app.Worker(pool="solo", concurrency=1, loglevel="ERROR", quiet=True)
    worker.start()
    sys.exit(worker.exitcode)


def leave():
    status = clock.until_done()
    # Said in the loop, whose turn sends the last acknowledgements.
    get_event_loop().call_soon(lambda: setattr(state, "should_stop", status))


if args.command == "work":
    clock = meter.Meter(args)
    work()
elif args.command == "enqueue":
    meter.enqueue(args, job.delay)
else:
    meter.latency(args, job.delay)
