//! What is asked, read from files: every row with its place, as a job or as a fault. Sending is `submit.rs`.

pub mod args;
mod csv_rows;
mod distinct;
mod make;
mod rows;
mod source;
mod template;

use std::sync::Arc;

use promptq_common::codec::{self, MAX_BYTES, PLACE_BYTES};
use promptq_common::job::{BatchName, Job, Queue};
use sha2::{Digest, Sha256};

pub use args::{InputArgs, JobArgs, Kind, OnConflict};
pub use distinct::Distinct;
pub use make::{Destination, Key, Made, Maker, alone};
pub use rows::{Fault, Place, Row};
pub use source::{Print, Source};

use crate::problem::{Problem, Result};
use crate::submit::{Doubt, Doubts, Fit};
use rows::Rows;

/// Everything a submission reads, ready to be read, twice if need be.
#[derive(Debug)]
pub struct Input {
    sources: Vec<Source>,
    maker: Maker,
    limit: u64,
    fit: Option<Arc<Fit>>,
}

impl Input {
    /// Finds the files and checks the flags. Nothing is read yet but standard input.
    pub fn open(args: &InputArgs) -> Result<Vec<Source>> {
        if args.stream && args.inputs != ["-"] {
            return Err(Problem::usage("--stream is for standard input alone").hint("promptq submit - --stream < FILE"));
        }
        Source::all(args)
    }

    /// The jobs of these sources.
    pub fn new(args: &InputArgs, sources: Vec<Source>, to: Destination) -> Result<Self> {
        let maker = Maker::new(args, to)?;
        Ok(Self { sources, maker, limit: args.limit.unwrap_or(u64::MAX), fit: None })
    }

    /// The same, where rows that no worker will run are faults.
    pub fn fitting(self, fit: Option<Arc<Fit>>) -> Self {
        Self { fit, ..self }
    }

    /// Where jobs go.
    pub fn queue(&self) -> &Queue {
        &self.maker.queue
    }

    /// The batch.
    pub fn batch(&self) -> &BatchName {
        &self.maker.batch
    }

    /// Whether ids follow from the batch's name.
    pub fn named(&self) -> bool {
        self.maker.named
    }

    /// Reads from the beginning.
    pub fn read(self: &Arc<Self>) -> Reading {
        Reading {
            input: Arc::clone(self),
            next: 0,
            rows: None,
            row: 0,
            judged: None,
            doubts: Doubts::default(),
            prints: Vec::new(),
        }
    }
}

/// One pass over the input. Blocking: not for an async thread.
#[derive(Debug)]
pub struct Reading {
    input: Arc<Input>,
    next: usize,
    rows: Option<Rows>,
    row: u64,
    /// How the last model was judged: most inputs name one.
    judged: Option<(String, Option<Doubt>)>,
    doubts: Doubts,
    prints: Vec<Print>,
}

/// One row.
#[derive(Debug)]
pub struct Item {
    /// 1-based, over all inputs.
    pub row: u64,
    /// Where it stands.
    pub place: Place,
    /// The job, or what is wrong.
    pub made: Result<Made, Fault>,
}

impl Reading {
    /// The next row; `None` at the end. `Err` when the input cannot be read on.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            if self.row >= self.input.limit {
                self.close();
                return Ok(None);
            }
            let rows = match &mut self.rows {
                Some(rows) => rows,
                none => {
                    let Some(source) = self.input.sources.get(self.next) else { return Ok(None) };
                    self.next += 1;
                    none.insert(Rows::open(source)?)
                }
            };
            let Some((place, row)) = rows.next_row()? else {
                self.close();
                continue;
            };
            self.row += 1;
            let made = row.and_then(|row| self.input.maker.make(self.row, row));
            let made = made.and_then(|made| small_enough(&made.job).map(|()| made));
            let made = made.and_then(|made| self.judge(&made.job).map(|()| made));
            return Ok(Some(Item { row: self.row, place, made }));
        }
    }

    /// Whether the next row may have to be waited for: what was read so far had better be sent.
    pub fn drained(&self) -> bool {
        self.rows.as_ref().is_some_and(Rows::drained)
    }

    /// Why jobs read so far may come to nothing.
    pub fn doubts(&mut self) -> Doubts {
        std::mem::take(&mut self.doubts)
    }

    /// What every file was, once everything is read.
    pub fn prints(self) -> Vec<Print> {
        self.prints
    }

    /// Whether the file being read, and those read before, are what they were at an earlier reading.
    pub fn agrees(&self, before: &[Print]) -> bool {
        let done = self.prints.iter().zip(before).all(|(now, then)| now == then);
        let current = self.rows.as_ref().zip(before.get(self.prints.len()));
        done && current.is_none_or(|(rows, then)| rows.looks_like(then))
    }

    fn judge(&mut self, job: &Job) -> Result<(), Fault> {
        let Some(fit) = &self.input.fit else { return Ok(()) };
        let model = job.work.model.as_ref().filter(|_| fit.is_by_model(job));
        let doubt = match (&self.judged, model) {
            (Some((judged, doubt)), Some(model)) if judged == model => doubt.clone(),
            (_, model) => {
                let doubt = fit.judge(job)?;
                self.judged = model.map(|model| (model.clone(), doubt.clone()));
                doubt
            }
        };
        if let Some(doubt) = doubt {
            self.doubts.add(doubt);
        }
        Ok(())
    }

    fn close(&mut self) {
        if let Some(print) = self.rows.take().and_then(|rows| rows.print()) {
            self.prints.push(print);
        }
    }
}

/// Refuses a job that is too large to travel, or would be with the place in a trace that it may be given.
pub(crate) fn small_enough(job: &Job) -> Result<(), Fault> {
    // Everything but the texts is bounded, and by far under a MiB: only near the limit is it worth encoding.
    if job.work.size() + (1 << 20) <= MAX_BYTES {
        return Ok(());
    }
    let place = if job.trace.is_none() { PLACE_BYTES } else { 0 };
    match codec::encode_job(job) {
        Ok(bytes) if bytes.len() + place <= MAX_BYTES => Ok(()),
        Ok(_) | Err(_) => Err(Fault::new(format!("larger than {} MiB, the most one job may be", MAX_BYTES >> 20))),
    }
}

/// Feeds everything that makes one submission differ from another into `hash`.
pub fn identify(args: &InputArgs, sources: &[Source], hash: &mut Sha256) -> Result<()> {
    for source in sources {
        hash.update(format!("{:?}", source.kind));
        // Only when it is given: runs from before there was a delimiter keep their identity.
        if let Some(delimiter) = source.delimiter {
            hash.update([delimiter]);
        }
        source.identify(hash)?;
    }
    let texts = [("-t", &args.template), ("--system", &args.system)];
    for (flag, text) in texts {
        let text = text.as_deref().map(|text| template::source(flag, text)).transpose()?;
        hash.update(format!("{text:?}\0"));
    }
    let job = &args.job;
    let rest = (&args.vars, &args.id_field, &args.idempotency_key_field, &job.model, &job.tenant, &job.params);
    hash.update(format!("{rest:?}{:?}{:?}{:?}{:?}", job.max_tokens, job.temperature, job.queue, job.batch));
    Ok(())
}
