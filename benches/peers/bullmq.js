// BullMQ, by the command line of README.md, on Redis. It stores each result in the job's hash, which stays, as by default;
// a worker holds a job by a lock that it renews. It stores no cost, and a stalled job runs again after 30 s at best.
// --bulk submits 500 jobs a call; without it, 64 single calls are under way at a time.
"use strict";
const { spawn } = require("node:child_process");
const { createInterface } = require("node:readline");
const { parseArgs } = require("node:util");
const { Queue, Worker } = require("bullmq");

// With their keys and the time, bodies and results have about 300 bytes as JSON.
const FILLING = "The quick brown fox jumps over the lazy dog. ".repeat(6);
const NAME = "peers";

const { positionals, values: args } = parseArgs({
  allowPositionals: true,
  options: {
    url: { type: "string" },
    jobs: { type: "string" },
    until: { type: "string" },
    warmup: { type: "string" },
    idle: { type: "string", default: "20" },
    bulk: { type: "boolean", default: false },
    latencies: { type: "boolean", default: false },
  },
});
const command = positionals[0];
const number = Number(args.jobs ?? args.until);
const warmup = Number(args.warmup ?? (command === "latency" ? 20 : 500));
const url = new URL(args.url);
const connection = {
  host: url.hostname,
  port: Number(url.port),
  db: Number(url.pathname.slice(1)),
  maxRetriesPerRequest: null,
};
const now = () => performance.timeOrigin + performance.now();
const body = () => ({ at: now(), text: FILLING });
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const say = (facts) => console.log(JSON.stringify(facts));

async function enqueue() {
  const queue = new Queue(NAME, { connection });
  const submit = args.bulk ? submitInBulk : submitSingly;
  await submit(queue, warmup);
  const began = now();
  const cpu = process.cpuUsage();
  await submit(queue, number);
  const seconds = (now() - began) / 1000;
  say({ jobs: number, seconds, ...costs(number, seconds, process.cpuUsage(cpu)) });
  await queue.close();
}

async function submitSingly(queue, jobs) {
  let left = jobs;
  const lane = async () => {
    while (left-- > 0) await queue.add("job", body());
  };
  await Promise.all(Array.from({ length: 64 }, lane));
}

async function submitInBulk(queue, jobs) {
  for (let done = 0; done < jobs; done += 500) {
    const length = Math.min(500, jobs - done);
    await queue.addBulk(Array.from({ length }, () => ({ name: "job", data: body() })));
  }
}

// The clock starts as the last warm-up job settles (without any: as the first job starts), and stops as the last one does.
async function work() {
  const waits = [];
  let count = 0;
  let start, end, cpu, used, settledAt;
  const begin = (at) => ([start, cpu] = [at, process.cpuUsage()]);
  let finish;
  const done = new Promise((resolve) => (finish = resolve));
  const handle = async (job) => {
    if (warmup === 0 && start === undefined) begin(now());
    if (args.latencies) waits.push(now() - job.data.at);
    return { answer: FILLING, tokens: 70 };
  };
  const worker = new Worker(NAME, handle, { connection, concurrency: 100 });
  worker.on("completed", () => {
    count += 1;
    end = settledAt = now();
    if (count === warmup) {
      begin(end);
      if (args.latencies) say({ warm: true });
    }
    if (count === warmup + number) {
      used = process.cpuUsage(cpu);
      finish();
    }
  });
  const opened = now();
  const watch = setInterval(() => {
    if (now() - (settledAt ?? opened) > Number(args.idle) * 1000) finish();
  }, 200);
  await done;
  clearInterval(watch);
  if (args.latencies) tellLatencies(waits.slice(warmup));
  else tell({ start, end, jobs: Math.max(count - warmup, 0), used: used ?? process.cpuUsage(cpu) });
  await worker.close();
  process.exitCode = count === warmup + number ? 0 : 3;
}

function tell({ start, end, jobs, used }) {
  const seconds = jobs > 0 ? (end - start) / 1000 : 0;
  say({ first_start: start / 1000, last_settled: end / 1000, seconds, jobs, ...costs(jobs, seconds, used) });
}

function tellLatencies(waits) {
  const ordered = waits.toSorted((one, other) => one - other);
  const at = (percent) => ordered[Math.min(Math.floor((ordered.length * percent) / 100), ordered.length - 1)];
  say({ jobs: waits.length, p50_ms: at(50), p99_ms: at(99), ms: waits });
}

function costs(jobs, seconds, used) {
  return {
    per_second: jobs / seconds,
    cpu_us_per_job: (used.user + used.system) / jobs,
    peak_kib: process.resourceUsage().maxRSS,
  };
}

// Starts a worker and submits one job at a time to it while it has nothing to do.
async function latency() {
  const wanted = ["work", "--url", args.url, "--until", number, "--warmup", warmup, "--idle", args.idle, "--latencies"];
  const worker = spawn(process.execPath, [__filename, ...wanted.map(String)], { stdio: ["ignore", "pipe", "inherit"] });
  const queue = new Queue(NAME, { connection });
  await submitSingly(queue, warmup);
  for await (const line of createInterface({ input: worker.stdout })) {
    if (!JSON.parse(line).warm) {
      console.log(line);
      break;
    }
    for (let job = 0; job < number; job += 1) {
      // Out of step with whatever polls.
      await pause(20 + 40 * Math.random());
      await queue.add("job", body());
    }
  }
  await queue.close();
}

const commands = { enqueue, work, latency };
commands[command]();
