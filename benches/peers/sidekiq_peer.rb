# Sidekiq, by the command line of README.md, on Redis. A worker pops a job before it runs it and stores nothing of it:
# there is no result, and what a killed worker had in hand is lost (its paid edition keeps it). --bulk submits 1,000 jobs
# a call.
require "json"
require "optparse"
require "sidekiq/cli"
require "sidekiq/launcher"

# With its key and the time, a body has about 300 bytes as JSON.
FILLING = "The quick brown fox jumps over the lazy dog. " * 6
THREADS = 25

def now = Process.clock_gettime(Process::CLOCK_REALTIME)
def cpu_seconds = Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID)
def body = { "at" => now, "text" => FILLING }

def say(facts)
  $stdout.puts(JSON.generate(facts))
  $stdout.flush
end

def costs(jobs, seconds, cpu)
  peak = File.read("/proc/self/status")[/VmHWM:\s+(\d+)/, 1].to_i
  { per_second: jobs / seconds, cpu_us_per_job: cpu * 1e6 / jobs, peak_kib: peak }
end

class Job
  include Sidekiq::Worker
  sidekiq_options queue: "peers", retry: 25

  def perform(sent) = CLOCK.started(sent)
end

# Counts settled jobs. It starts as the last warm-up job settles (without any: as the first job starts), and stops as the
# last job settles.
class Clock
  def initialize(args)
    @number, @warmup, @idle, @latencies = args.values_at(:number, :warmup, :idle, :latencies)
    @count = 0
    @waits = []
    @lock = Mutex.new
  end

  def started(sent)
    begin_at(now) if @warmup.zero? && @start.nil?
    @waits << (now - sent["at"]) * 1000 if @latencies
  end

  def settled
    @lock.synchronize do
      @count += 1
      @last = now
      begin_at(@last) if @count == @warmup
      say(warm: true) if @count == @warmup && @latencies
      @used = cpu_seconds - @cpu if @count == @warmup + @number
    end
  end

  # Waits until all is settled, or nothing has been for the time that --idle says; tells what it saw, and gives the
  # status to leave with.
  def until_done
    seen, since = 0, now
    until @used || now - since > @idle
      sleep 0.2
      seen, since = @count, now if @count != seen
    end
    @latencies ? tell_latencies(@waits.drop(@warmup)) : tell
    @used ? 0 : 3
  end

  private

  def begin_at(at)
    @start, @cpu = at, cpu_seconds
  end

  def tell
    jobs = [@count - @warmup, 0].max
    return say(jobs: 0, seconds: 0.0) if jobs.zero?

    seconds = @last - @start
    used = @used || cpu_seconds - @cpu
    say({ first_start: @start, last_settled: @last, seconds: seconds, jobs: jobs }.merge(costs(jobs, seconds, used)))
  end

  def tell_latencies(waits)
    ordered = waits.sort
    at = ->(percent) { ordered[[ordered.size * percent / 100, ordered.size - 1].min] }
    say(jobs: waits.size, p50_ms: at[50], p99_ms: at[99], ms: waits)
  end
end

# What Sidekiq does last with a job, whether or not there is anything to acknowledge.
module Counted
  def acknowledge
    super
    CLOCK.settled
  end
end

def submit(jobs, bulk)
  return jobs.times { Job.perform_async(body) } unless bulk

  (0...jobs).each_slice(1000) { |some| Sidekiq::Client.push_bulk("class" => Job, "args" => some.map { [body] }) }
end

def enqueue(args)
  submit(args[:warmup], args[:bulk])
  began, cpu = now, cpu_seconds
  submit(args[:number], args[:bulk])
  seconds = now - began
  say({ jobs: args[:number], seconds: seconds }.merge(costs(args[:number], seconds, cpu_seconds - cpu)))
end

def work(args)
  Object.const_set(:CLOCK, Clock.new(args))
  Sidekiq::BasicFetch::UnitOfWork.prepend(Counted)
  options = Sidekiq.options.merge(queues: ["peers"], strict: true, concurrency: THREADS, timeout: 5)
  launcher = Sidekiq::Launcher.new(options)
  launcher.run
  status = CLOCK.until_done
  launcher.stop
  exit status
end

# Starts a worker and submits one job at a time to it while it has nothing to do.
def latency(args)
  wanted = ["work", "--url", args[:url], "--until", args[:number], "--warmup", args[:warmup], "--idle", args[:idle]]
  IO.popen([RbConfig.ruby, __FILE__, *wanted.map(&:to_s), "--latencies"]) do |worker|
    submit(args[:warmup], false)
    while (line = worker.gets)
      next $stdout.puts(line) unless JSON.parse(line)["warm"]

      args[:number].times do
        # Out of step with whatever polls.
        sleep rand(0.02..0.06)
        submit(1, false)
      end
    end
  end
  exit $?.exitstatus
end

command = ARGV.shift
args = { warmup: command == "latency" ? 20 : 500, idle: 20.0 }
OptionParser.new do |options|
  options.on("--url URL") { |url| args[:url] = url }
  options.on("--jobs N", "--until N", Integer) { |number| args[:number] = number }
  options.on("--warmup N", Integer) { |number| args[:warmup] = number }
  options.on("--idle SECONDS", Float) { |seconds| args[:idle] = seconds }
  options.on("--bulk") { args[:bulk] = true }
  options.on("--latencies") { args[:latencies] = true }
end.parse!
# Of what this Sidekiq does with a newer Redis client it would be warned with every job.
Redis.silence_deprecations = true
Redis.sadd_returns_boolean = false
Sidekiq.logger.level = Logger::ERROR
Sidekiq.redis = { url: args[:url], size: THREADS + 5 }
{ "enqueue" => method(:enqueue), "work" => method(:work), "latency" => method(:latency) }.fetch(command).call(args)
