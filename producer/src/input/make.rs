//! A row and the flags become a job. Pure: reading rows is `rows.rs`, sending jobs is `submit.rs`.

use std::time::Duration;

use minijinja::Value as Cell;
use minijinja::value::Serde;
use promptq_common::config::{Config, QueuePolicy};
use promptq_common::job::{BatchName, Job, JobId, Policy, Queue, Reuse};
use promptq_common::line::{BadLine, Line, LineTerms, MAX_TAGS, When, check_name, closest, params_text};
use promptq_common::time::{Timestamp, format_duration};
use promptq_common::work::{Input, Prompt, Work};
use serde_json::{Map, Value};

use super::args::{InputArgs, JobArgs};
use super::rows::{Fault, Row};
use super::template::Template;
use crate::problem::{Problem, Result};

/// Makes jobs from rows.
#[derive(Debug)]
pub struct Maker {
    template: Option<Template>,
    system: Option<Template>,
    vars: Vec<(String, String)>,
    id_field: Option<String>,
    key_field: Option<String>,
    flags: JobArgs,
    params: Map<String, Value>,
    /// Where jobs go that name no queue.
    pub queue: Queue,
    /// The batch every job belongs to.
    pub batch: BatchName,
    /// Whether a row's id follows from the batch's name, so that the same row is the same job.
    pub named: bool,
    policy: Option<QueuePolicy>,
    reusable_for: Option<Duration>,
    now: Timestamp,
}

/// Where jobs go, and what their names are made of.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Where jobs go that name no queue.
    pub queue: Queue,
    /// What that queue says of jobs that say nothing themselves.
    pub policy: Option<QueuePolicy>,
    /// The batch every job belongs to.
    pub batch: BatchName,
    /// Whether a row's id follows from the batch's name, so that the same row is the same job.
    pub named: bool,
    /// The oldest answer that can be given again; `None` where there is no store to keep any in.
    pub reusable_for: Option<Duration>,
}

/// A job, and what must be unique among the jobs of its submission.
#[derive(Clone, Debug)]
pub struct Made {
    /// The job.
    pub job: Job,
    /// Its id when derived, else what its `custom_id` stands for; `None` when nothing names it.
    pub unique: Option<JobId>,
    /// Whether its id follows from a key of its own, and not from the batch's name.
    pub own_key: bool,
}

impl Maker {
    /// Checks the flags.
    pub fn new(args: &InputArgs, to: Destination) -> Result<Self> {
        let compile =
            |flag, text: &Option<String>| text.as_deref().map(|text| Template::from_flag(flag, text)).transpose();
        let flags = args.job.clone();
        for (what, text) in [("--tenant", &flags.tenant), ("--model", &flags.model)] {
            if let Some(text) = text {
                check_name(what, text).map_err(Problem::usage)?;
            }
        }
        if flags.tags.len() > MAX_TAGS {
            return Err(Problem::usage(format!("more than {MAX_TAGS} tags")));
        }
        for (name, value) in &flags.tags {
            check_name("--tag", name).and_then(|()| check_name("--tag", value)).map_err(Problem::usage)?;
        }
        let reuse = flags.reuse.or(by_queue(to.policy.as_ref()));
        if let Some(bad) = reuse.and_then(|reuse| unfit(reuse, to.reusable_for)) {
            let whose = if flags.reuse.is_some() { "--reuse".to_owned() } else { format!("queues.{}.reuse", to.queue) };
            let problem = Problem::usage(format!("{whose}: {}", bad.what)).detail("nothing was enqueued");
            return Err(bad.hint.into_iter().fold(problem, Problem::hint));
        }
        Ok(Self {
            template: compile("-t", &args.template)?,
            system: compile("--system", &args.system)?,
            vars: args.vars.clone(),
            id_field: args.id_field.clone(),
            key_field: args.idempotency_key_field.clone(),
            params: params(&flags)?,
            flags,
            queue: to.queue,
            batch: to.batch,
            named: to.named,
            policy: to.policy,
            reusable_for: to.reusable_for,
            now: Timestamp::now(),
        })
    }

    /// The job of row `n` (1-based, over all inputs).
    pub fn make(&self, n: u64, row: Row) -> Result<Made, Fault> {
        let mut line = match row {
            Row::Json(text) if self.template.is_none() => Line::parse(&text).map_err(|bad| shown(bad, &text))?,
            Row::Json(text) => {
                let columns: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
                    let column = (error.column() > 0).then(|| error.column());
                    let what = error.to_string();
                    let what = what.split(" at line ").next().unwrap_or_default().to_owned();
                    shown(BadLine { column, what, hint: None }, &text)
                })?;
                self.columns_line(columns)?
            }
            Row::Columns(columns) => self.columns_line(columns)?,
            Row::Text { text, file } => self.text_line(text, file)?,
        };
        self.apply(&mut line)?;
        let mut job = by_policy(line, &self.queue, self.policy.as_ref(), self.now);
        job.batch = Some(self.batch.clone());
        job.row = Some(n);
        if let Some(most) = self.flags.max_cost {
            job.extras.get_or_insert_default().batch_max_cost = Some(most);
        }
        if job.queue != self.queue {
            return Err(Fault::new(format!("goes to queue {:?}, the batch to {:?}", job.queue, self.queue))
                .hint("a batch belongs to one queue: split the file, or pass -Q"));
        }
        in_time(&job, self.now)?;
        let own_key = job.keyed;
        let name = match &job.custom_id {
            Some(id) => format!("{}/{id}", self.batch),
            None => format!("{}/{n}", self.batch),
        };
        if !job.keyed && self.named {
            job = job.with_key(&name);
        }
        let unique = if job.keyed {
            Some(job.id)
        } else {
            job.custom_id.is_some().then(|| JobId::derived(&job.queue, job.tenant.as_deref(), &name))
        };
        Ok(Made { job, unique, own_key })
    }

    fn columns_line(&self, columns: Map<String, Value>) -> Result<Line, Fault> {
        let custom_id = self.id_field.as_deref().map(|field| column(&columns, field, "--id-field")).transpose()?;
        let key =
            self.key_field.as_deref().map(|field| column(&columns, field, "--idempotency-key-field")).transpose()?;
        let text = match (&self.template, columns.get("prompt")) {
            (Some(_), _) => None,
            (None, Some(Value::String(text))) => Some(text.clone()),
            (None, _) => {
                let names: Vec<_> = columns.keys().map(String::as_str).collect();
                let names = names.join(", ");
                return Err(Fault::new(format!("no column is named \"prompt\"; columns: {names}"))
                    .hint("say how a prompt is made of them, as in -t '{{text}}'"));
            }
        };
        let mut line = self.prompt(columns, text)?;
        line.custom_id = custom_id;
        line.terms.key = key;
        Ok(line)
    }

    fn text_line(&self, text: String, file: Option<String>) -> Result<Line, Fault> {
        if let Some(field) = self.id_field.as_ref().or(self.key_field.as_ref()) {
            return Err(Fault::new(format!("plain text has no column {field:?}")).hint("leave out --id-field"));
        }
        let mut columns = Map::new();
        let whole = self.template.is_none().then(|| text.clone());
        columns.insert("text".into(), Value::String(text));
        if let Some(file) = &file {
            columns.insert("file".into(), Value::String(file.clone()));
        }
        let mut line = self.prompt(columns, whole)?;
        line.custom_id = file;
        Ok(line)
    }

    /// A prompt of `text`, or else of the template over the columns.
    fn prompt(&self, mut columns: Map<String, Value>, text: Option<String>) -> Result<Line, Fault> {
        for (name, value) in &self.vars {
            columns.insert(name.clone(), Value::String(value.clone()));
        }
        let uses_row = [&self.template, &self.system].into_iter().flatten().any(|template| template.uses("row"));
        if uses_row && !columns.contains_key("row") {
            let all = Value::Object(columns.clone());
            columns.insert("row".into(), all);
        }
        let text = match (text, &self.template) {
            (Some(text), _) => text,
            (None, Some(template)) => filled(template, &columns)?,
            (None, None) => String::new(),
        };
        if text.trim().is_empty() {
            return Err(Fault::new("the prompt is empty"));
        }
        let system = self.system.as_ref().map(|system| filled(system, &columns)).transpose()?;
        let input = Input::Prompt(Prompt { text, system, params: String::new() });
        Ok(Line { custom_id: None, work: Work { model: None, input }, terms: LineTerms::default() })
    }

    /// Lets the flags have their say over what the line says.
    fn apply(&self, line: &mut Line) -> Result<(), Fault> {
        let flags = &self.flags;
        match &mut line.work.input {
            Input::Prompt(prompt) => {
                if let (Some(system), None) = (&self.system, &prompt.system) {
                    prompt.system = Some(system.render(&Cell::from(Serde(Map::new())))?);
                }
                if !self.params.is_empty() {
                    let mut params: Map<String, Value> = serde_json::from_str(&prompt.params).unwrap_or_default();
                    params.extend(self.params.clone());
                    prompt.params = params_text(params);
                }
            }
            Input::Request { .. } if self.system.is_some() || !self.params.is_empty() => {
                return Err(Fault::new(
                    "a ready-made request is sent as it is; --system, --max-tokens, --temperature and --param cannot change it",
                ));
            }
            Input::Request { .. } => {}
        }
        if flags.model.is_some() {
            line.work.model.clone_from(&flags.model);
        }
        let terms = &mut line.terms;
        terms.queue = flags.queue.clone().or(terms.queue.take());
        terms.priority = flags.priority.or(terms.priority);
        terms.not_before = flags.at.map(When::At).or(flags.delay.map(When::In)).or(terms.not_before);
        terms.deadline = flags.deadline.or(terms.deadline);
        terms.attempts = flags.attempts.or(terms.attempts);
        terms.repair_attempts = flags.repair_attempts.or(terms.repair_attempts);
        terms.backoff = flags.backoff.or(terms.backoff);
        terms.timeout = flags.timeout.or(terms.timeout);
        terms.tenant = flags.tenant.clone().or(terms.tenant.take());
        terms.tags.extend(flags.tags.iter().cloned());
        terms.reuse = flags.reuse.or(terms.reuse).or(by_queue(self.policy.as_ref()));
        terms.reuse.and_then(|reuse| unfit(reuse, self.reusable_for)).map_or(Ok(()), Err)
    }
}

/// The job of one line that stands by itself: in the queue it names, under that queue's policy, in no batch. Its id
/// follows from its key, which is `key` where the line has none.
pub fn alone(text: &str, key: &Key<'_>, config: &Config) -> Result<Job, Fault> {
    let now = Timestamp::now();
    let mut line = Line::parse(text).map_err(|bad| shown(bad, text))?;
    match (&line.terms.key, key) {
        (Some(own), Key::Given(key)) if own != key => {
            return Err(Fault::new("\"idempotency_key\" is another than the one of the request").hint("give one"));
        }
        (Some(_), _) => {}
        (None, Key::Given(key) | Key::Made(key)) => line.terms.key = Some((*key).to_owned()),
    }
    let queue = line.terms.queue.clone().unwrap_or_else(Queue::standard);
    let policy = config.queues.get(&queue);
    line.terms.reuse = line.terms.reuse.or(by_queue(policy));
    if let Some(bad) = line.terms.reuse.and_then(|reuse| unfit(reuse, config.reusable_for())) {
        // Who sends it has no settings.
        return Err(bad.hint("leave \"reuse\" out, or ask for a younger answer"));
    }
    let job = by_policy(line, &queue, policy, now);
    in_time(&job, now).map(|()| job)
}

/// What a job's id follows from where its line says nothing of that.
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    /// Given with it, so that the line may not have another.
    Given(&'a str),
    /// Made for it.
    Made(&'a str),
}

/// The job of a line, with what its queue says of what the line leaves out.
fn by_policy(line: Line, queue: &Queue, policy: Option<&QueuePolicy>, now: Timestamp) -> Job {
    let (attempts, repairs) = (line.terms.attempts, line.terms.repair_attempts);
    let (backoff, timeout) = (line.terms.backoff, line.terms.timeout);
    let deadline = line.terms.deadline;
    let mut job = line.into_job(queue, now);
    if let Some(policy) = policy {
        job.policy = Policy {
            attempts: attempts.unwrap_or(policy.attempts),
            backoff: if backoff.is_some() { job.policy.backoff } else { policy.backoff.clone() },
            timeout: timeout.unwrap_or(policy.timeout),
            repair_attempts: repairs.unwrap_or(policy.repair_attempts),
        };
        if deadline.is_none() {
            job.deadline = job.not_before.unwrap_or(now).max(now) + policy.deadline;
        }
    }
    job
}

fn in_time(job: &Job, now: Timestamp) -> Result<(), Fault> {
    if job.deadline <= now { Err(Fault::new("its deadline has passed")) } else { Ok(()) }
}

fn by_queue(policy: Option<&QueuePolicy>) -> Option<Reuse> {
    policy?.reuse.map(Reuse::Within)
}

/// Why stored answers of this age cannot be had.
fn unfit(reuse: Reuse, reusable_for: Option<Duration>) -> Option<Fault> {
    let age = reuse.age()?;
    let Some(most) = reusable_for else {
        return Some(
            Fault::new("there is no store that answers could be kept in")
                .hint("name the one of the workers, as in --store s3://BUCKET/promptq; or leave reuse out"),
        );
    };
    (age > most).then(|| {
        let (age, most) = (format_duration(age), format_duration(most));
        Fault::new(format!("an answer {age} old is gone: they are kept for {most}"))
            .hint(format!("ask for {most} at most, or raise retention.reuse here and for the workers"))
    })
}

fn filled(template: &Template, columns: &Map<String, Value>) -> Result<String, Fault> {
    match template.fill(columns) {
        Some(text) => Ok(text),
        None => template.render(&Cell::from(Serde(columns))),
    }
}

fn params(flags: &JobArgs) -> Result<Map<String, Value>> {
    let mut params = Map::new();
    for (name, value) in &flags.params {
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
        params.insert(name.clone(), value);
    }
    if let Some(tokens) = flags.max_tokens {
        params.insert("max_tokens".into(), tokens.into());
    }
    if let Some(temperature) = flags.temperature {
        let number =
            serde_json::Number::from_f64(temperature).ok_or_else(|| Problem::usage("--temperature is not a number"))?;
        params.insert("temperature".into(), Value::Number(number));
    }
    Ok(params)
}

fn column(columns: &Map<String, Value>, field: &str, flag: &str) -> Result<String, Fault> {
    let text = match columns.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(Fault::new(format!("column {field:?} is neither text nor a number"))),
        None => {
            let names: Vec<_> = columns.keys().map(String::as_str).collect();
            let fault = Fault::new(format!("{flag} {field}: there is no such column; columns: {}", names.join(", ")));
            return Err(match closest(field, names.iter().copied()) {
                Some(near) => fault.hint(format!("did you mean {flag} {near}?")),
                None => fault,
            });
        }
    };
    check_name(field, &text).map_err(Fault::new)?;
    Ok(text)
}

/// A bad line with the piece of it around the fault.
fn shown(bad: BadLine, text: &str) -> Fault {
    const AROUND: usize = 30;
    let at = bad.column.unwrap_or(1).saturating_sub(1).min(text.len());
    let near = |(place, _): &(usize, char)| (at.saturating_sub(AROUND)..at + AROUND).contains(place);
    let piece = text.char_indices().skip_while(|c| !near(c)).take_while(near);
    let excerpt = Some(piece.map(|(_, c)| if c.is_control() { ' ' } else { c }).collect());
    let alien = ["expected ident", "expected value"].iter().any(|start| bad.what.starts_with(start));
    let what = if alien { "not JSON".to_owned() } else { bad.what };
    Fault { column: bad.column, what, excerpt, hint: bad.hint }
}

#[cfg(test)]
#[path = "make_tests.rs"]
mod tests;
