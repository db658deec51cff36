//! The steps of the way of a job that need no broker, each as something to be done once for each job; what they are done
//! with is that of the contests: 300 bytes of prompt, 300 of answer.

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use promptq::input::{Destination, Input, InputArgs, JobArgs, Maker, Row};
use promptq_benches::library::{answer, job, record, text};
use promptq_common::broker::{LeaseId, WorkerId, envelope};
use promptq_common::codec::{decode_job, decode_record, encode_job, encode_record};
use promptq_common::job::{BatchName, Job, Policy, Queue};
use promptq_common::limits::Limits;
use promptq_common::outcome::{AnswerClass, Body, Failure, FailureClass, Outcome, Reply, Usage, Usd};
use promptq_common::result_line::result_line;
use promptq_worker::judge::{Past, judge};
use promptq_worker::runner::{ExecSettings, MockSettings, RunContext, RunnerSettings, Runners};
use tempfile::TempDir;

/// Rows of a file that is read again and again.
const ROWS: usize = 10_000;
const TEMPLATE: &str = "Sentiment of: {{text}}";

/// One step: its name, and what it is for one job.
pub(crate) type Step = (&'static str, Box<dyn FnMut()>);

/// Every step, in the order in which a job meets them. The folder holds what is read.
pub(crate) fn steps(folder: &TempDir) -> anyhow::Result<Vec<Step>> {
    let job = job(7);
    let whole = envelope(&job).map_err(|bytes| anyhow::anyhow!("a job of {bytes} bytes does not travel"))?;
    let record = record(&whole.head, LeaseId::random(), &answer());
    let (job_bytes, record_bytes) = (encode_job(&job)?, encode_record(&record)?);
    let mut steps: Vec<Step> = reading(folder)?;
    steps.push((
        "encode a job and its head",
        step({
            let job = job.clone();
            move || envelope(&job)
        }),
    ));
    steps.push((
        "encode a job",
        step({
            let job = job.clone();
            move || encode_job(&job)
        }),
    ));
    steps.push(("decode a job", step(move || decode_job(&job_bytes))));
    steps.extend(working(job)?);
    steps.push((
        "encode a record",
        step({
            let record = record.clone();
            move || encode_record(&record)
        }),
    ));
    steps.push(("decode a record", step(move || decode_record(&record_bytes))));
    steps.push(("write a result line", step(move || result_line(&record, None))));
    Ok(steps)
}

fn step<T>(mut of: impl FnMut() -> T + 'static) -> Box<dyn FnMut()> {
    Box::new(move || drop(black_box(of())))
}

/// Rows to jobs: from files, and from a row that was read with and without a template.
fn reading(folder: &TempDir) -> anyhow::Result<Vec<Step>> {
    let (csv, jsonl) = (folder.path().join("rows.csv"), folder.path().join("rows.jsonl"));
    let mut rows = std::fs::File::create(&csv).map(std::io::BufWriter::new)?;
    writeln!(rows, "id,text")?;
    let mut lines = std::fs::File::create(&jsonl).map(std::io::BufWriter::new)?;
    for n in 0..ROWS {
        writeln!(rows, "row-{n},{}", text(n))?;
        writeln!(lines, r#"{{"custom_id":"row-{n}","prompt":"{}"}}"#, text(n))?;
    }
    rows.flush()?;
    lines.flush()?;
    let names = [csv, jsonl].map(|path| path.display().to_string());
    let [plain, templated] = [None, Some(TEMPLATE)].map(|template| maker(&arguments("-", Some("id"), template)));
    let columns = |name: &str| {
        let mut columns = serde_json::Map::new();
        columns.insert("id".into(), "row-7".into());
        columns.insert(name.into(), text(7).into());
        Row::Columns(columns)
    };
    let (own, filled) = (columns("prompt"), columns("text"));
    let (plain, templated) = (plain?, templated?);
    Ok(vec![
        ("read a CSV row to a job, by a template", file(&arguments(&names[0], Some("id"), Some(TEMPLATE)))?),
        ("read a JSONL line to a job", file(&arguments(&names[1], None, None))?),
        ("a row that was read to a job", step(move || plain.make(7, own.clone()))),
        ("the same by a template", step(move || templated.make(7, filled.clone()))),
    ])
}

/// The next row of a file, and its first one after the last.
fn file(args: &InputArgs) -> anyhow::Result<Box<dyn FnMut()>> {
    let wrong = |problem: promptq::problem::Problem| anyhow::anyhow!("{problem:?}");
    let sources = Input::open(args).map_err(wrong)?;
    let input = Arc::new(Input::new(args, sources, destination()?).map_err(wrong)?);
    let mut reading = input.read();
    Ok(step(move || {
        loop {
            match reading.next_item() {
                Ok(Some(item)) => return item,
                Ok(None) => reading = input.read(),
                Err(problem) => panic!("{problem:?}"),
            }
        }
    }))
}

fn maker(args: &InputArgs) -> anyhow::Result<Maker> {
    Maker::new(args, destination()?).map_err(|problem| anyhow::anyhow!("{problem:?}"))
}

fn destination() -> anyhow::Result<Destination> {
    let batch = BatchName::new("reviews")?;
    Ok(Destination { queue: Queue::standard(), policy: None, batch, named: true, reusable_for: None })
}

fn arguments(input: &str, id_field: Option<&str>, template: Option<&str>) -> InputArgs {
    InputArgs {
        inputs: vec![input.to_owned()],
        kind: None,
        delimiter: None,
        template: template.map(str::to_owned),
        system: None,
        vars: Vec::new(),
        id_field: id_field.map(str::to_owned),
        idempotency_key_field: None,
        limit: None,
        skip_invalid: false,
        dry_run: false,
        stream: false,
        spool_limit: bytesize::ByteSize::gib(1),
        job: JobArgs { model: Some("mock".to_owned()), ..JobArgs::default() },
    }
}

/// What a worker does with a job between its lease and its end.
fn working(job: Job) -> anyhow::Result<Vec<Step>> {
    let lane = job.lane();
    let limits = Limits::new();
    let answer = Outcome::Success(reply());
    let refused = Outcome::Failure(Failure::new(FailureClass::Transient, "server_error", "the server said 500"));
    let (id, judged, policy) = (job.id, answer.clone(), Policy::standard());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let runners = Runners::new(RunnerSettings {
        providers: std::collections::BTreeMap::new(),
        models: std::collections::BTreeMap::new(),
        exec: ExecSettings { named: [].into(), allow_inline: false, environment: Vec::new(), max_output: 1_000 },
        mock: MockSettings { latency: (Duration::ZERO, Duration::ZERO), ..MockSettings::standard() },
    })?;
    let cx = RunContext {
        attempt: 1,
        lease: LeaseId::random(),
        worker: WorkerId::random("bench"),
        ear: None,
        stream: false,
        trace: None,
    };
    let past = Past::default();
    let first = policy.clone();
    Ok(vec![
        ("limits: admit and report", step(move || limits.admit(&lane, "mock").map(|pass| pass.report(id, &answer)))),
        (
            "run: the mock, at once",
            step(move || {
                let runner = runners.pick(&job).ok()?;
                Some(runtime.block_on(runner.run(&job, &cx)))
            }),
        ),
        ("judge an answer", step(move || judge(&judged, past, &first, 0.5))),
        ("judge a failure", step(move || judge(&refused, past, &policy, 0.5))),
    ])
}

fn reply() -> Reply {
    Reply {
        status_code: 200,
        request_id: None,
        body: Body::Text(answer()),
        text: None,
        model: Some("mock".to_owned()),
        finish_reason: Some("stop".to_owned()),
        class: AnswerClass::Complete,
        usage: Usage { input_tokens: 70, output_tokens: 60, cached_tokens: 0, reasoning_tokens: 0 },
        cost: Some(Usd::from_nanos(1_250)),
        detail: None,
        origin: None,
    }
}
