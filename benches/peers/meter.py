# What the Python peers share: the command line, the jobs' bodies and results, and the clock. Which broker is asked for
# what is celery_peer.py's and dramatiq_peer.py's own.
import argparse
import json
import random
import resource
import subprocess
import sys
import threading
import time

# With their keys and the time, bodies and results have about 300 bytes as JSON.
FILLING = "The quick brown fox jumps over the lazy dog. " * 6


def command_line():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name, number in (("enqueue", "--jobs"), ("work", "--until"), ("latency", "--jobs")):
        command = commands.add_parser(name)
        command.add_argument("--url", required=True)
        command.add_argument("--results")
        command.add_argument("--queue", choices=["classic", "quorum"], default="classic")
        command.add_argument(number, type=int, required=True, dest="number")
        command.add_argument("--warmup", type=int, default=20 if name == "latency" else 500)
        command.add_argument("--idle", type=float, default=20.0)
        command.add_argument("--latencies", action="store_true")
    return parser.parse_args()


def body():
    return {"at": time.time(), "text": FILLING}


def result():
    return {"answer": FILLING, "tokens": 70}


def enqueue(args, submit):
    """Submits the warm-up, then the jobs, one after the other, each safe when `submit` returns."""
    for _ in range(args.warmup):
        submit(body())
    began, cpu = time.time(), time.process_time()
    for _ in range(args.number):
        submit(body())
    seconds = time.time() - began
    say(jobs=args.number, seconds=seconds, **costs(args.number, seconds, time.process_time() - cpu))


def latency(args, submit):
    """Starts a worker and submits one job at a time to it while it has nothing to do."""
    wanted = ["work", "--url", args.url, "--queue", args.queue, "--until", str(args.number)]
    wanted += ["--warmup", str(args.warmup), "--idle", str(args.idle), "--latencies"]
    wanted += ["--results", args.results] if args.results else []
    worker = subprocess.Popen([sys.executable, sys.argv[0], *wanted], stdout=subprocess.PIPE, text=True)
    for _ in range(args.warmup):
        submit(body())
    line = worker.stdout.readline()
    while line and "ms" not in json.loads(line):
        for _ in range(args.number):
            # Out of step with whatever polls.
            time.sleep(random.uniform(0.02, 0.06))
            submit(body())
        line = worker.stdout.readline()
    sys.stdout.write(line)
    sys.exit(worker.wait())


class Meter:
    """Counts a worker's settled jobs. Its clock starts as the last warm-up job settles (without any: as the first job
    starts), and stops as the last job settles."""

    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.count = 0
        self.waits = []
        self.first_start = self.last_settled = self.cpu = self.cpu_end = None
        self.is_done = threading.Event()

    def started(self, job):
        if self.first_start is None and self.args.warmup == 0:
            self.first_start, self.cpu = time.time(), time.process_time()
        if self.args.latencies:
            self.waits.append((time.time() - job["at"]) * 1000)

    def settled(self):
        with self.lock:
            self.count += 1
            self.last_settled = time.time()
            if self.count == self.args.warmup:
                self.first_start, self.cpu = self.last_settled, time.process_time()
                if self.args.latencies:
                    say(warm=True)
            elif self.count == self.args.warmup + self.args.number:
                self.is_done.set()

    def until_done(self):
        """Waits until all is settled, or nothing has been for the time that `--idle` says; tells what it saw, and gives
        the status to leave with."""
        since, seen = time.monotonic(), 0
        while not self.is_done.wait(0.2):
            if self.count != seen:
                since, seen = time.monotonic(), self.count
            elif time.monotonic() - since > self.args.idle:
                break
        if self.args.latencies:
            tell_latencies(self.waits[self.args.warmup :])
        else:
            self.tell()
        return 0 if self.is_done.is_set() else 3

    def tell(self):
        jobs = max(self.count - self.args.warmup, 0)
        seconds = self.last_settled - self.first_start if self.first_start and jobs else 0.0
        used = time.process_time() - self.cpu if jobs else 0.0
        say(
            first_start=self.first_start,
            last_settled=self.last_settled,
            seconds=seconds,
            jobs=jobs,
            **costs(jobs, seconds, used),
        )


def tell_latencies(waits):
    ordered = sorted(waits) or [0.0]
    at = {f"p{p}_ms": round(ordered[min(len(ordered) * p // 100, len(ordered) - 1)], 3) for p in (50, 99)}
    say(jobs=len(waits), **at, ms=[round(wait, 3) for wait in waits])


def costs(jobs, seconds, cpu):
    return {
        "per_second": round(jobs / seconds, 1) if seconds else 0.0,
        "cpu_us_per_job": round(cpu * 1e6 / jobs, 1) if jobs else 0.0,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def say(**facts):
    print(json.dumps(facts), flush=True)
