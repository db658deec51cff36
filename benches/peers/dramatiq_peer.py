# Dramatiq, by the command line of README.md. Publisher confirms on RabbitMQ; acknowledged after the work, always. With
# --results, each job's result is a key of that Redis for ten minutes; without, none is stored. It stores no claim and no
# cost; a copy of a job that ran is run again.
import sys

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

import meter

args = meter.command_line()


class Quorum(RabbitmqBroker):
    """Dramatiq has no setting for this."""

    def _build_queue_arguments(self, queue_name):
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


class Clock(Middleware):
    def after_ack(self, broker, message):
        clock.settled()


if args.url.startswith("amqp"):
    broker = (Quorum if args.queue == "quorum" else RabbitmqBroker)(url=args.url, confirm_delivery=True)
else:
    broker = RedisBroker(url=args.url)
if args.results:
    broker.add_middleware(Results(backend=RedisBackend(url=args.results), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=f"dramatiq-{args.queue}")
def job(sent):
    clock.started(sent)
    return meter.result() if args.results else None


def work():
    broker.add_middleware(Clock())
    # In this process and with its default of 8 threads; its own command would start it in a child.
    worker = dramatiq.Worker(broker, worker_threads=8)
    worker.start()
    status = clock.until_done()
    worker.stop()
    sys.exit(status)


if args.command == "work":
    clock = meter.Meter(args)
    work()
elif args.command == "enqueue":
    meter.enqueue(args, job.send)
else:
    meter.latency(args, job.send)
