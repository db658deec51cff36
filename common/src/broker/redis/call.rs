//! A lease asked of one queue: what it says, and how what nobody heard of it is given back. Which lanes are asked, and
//! what is made of the answer, is `source.rs`.

use std::sync::LazyLock;

use deadpool_redis::redis::Value;
use tokio::time::Instant;

use super::hold::{millis, text};
use super::link::Link;
use super::script::Script;
use super::wire::{Places, lane_text};
use super::{BOOK, book_script};
use crate::broker::LeaseId;
use crate::broker::backend::{LEASE_BYTES, Terms};
use crate::error::Result;
use crate::job::Lane;

static LEASE: LazyLock<Script> = book_script!("lease");
pub(super) static DISOWN: LazyLock<Script> = book_script!("disown");

#[derive(Debug)]
pub(super) struct Call {
    /// The queue's place among the subscription's.
    pub(super) place: usize,
    /// The ids it leases with, 16 bytes each.
    pub(super) leases: Vec<u8>,
    /// When it was made, and [`Link::turns`] then.
    pub(super) made: (Instant, u64),
}

impl Call {
    /// For so many jobs of the queue at this place.
    pub(super) fn new(link: &Link, place: usize, jobs: u32) -> Self {
        let leases = (0..jobs).flat_map(|_| *LeaseId::random().as_bytes()).collect();
        Self { place, leases, made: (Instant::now(), link.turns()) }
    }

    /// What `lease.lua` is told. `rest`: of a caller that has seen no lane with jobs, see `take_all` there.
    pub(super) fn args(
        self,
        terms: &Terms,
        hops: u32,
        rest: Option<u32>,
        lanes: &[(&Lane, u32)],
    ) -> (Self, Vec<Vec<u8>>) {
        let rest = rest.map(text).unwrap_or_default();
        let (worker, leases) = (terms.worker.as_str().into(), self.leases.clone());
        let mut args = vec![worker, millis(terms.lease), leases, text(hops), text(LEASE_BYTES), rest];
        for (lane, count) in lanes {
            args.extend([lane_text(lane).into_bytes(), text(*count)]);
        }
        (self, args)
    }

    /// Makes it, and says what it was with what came of it.
    pub(super) async fn make(self, link: Link, key: Vec<u8>, args: Vec<Vec<u8>>) -> (Self, Result<Value>) {
        crate::crash_point!("redis.lease.before_call");
        let answer = link.call("lease jobs", &LEASE, &[key], args).await;
        crate::crash_point!("redis.lease.after_call");
        (self, answer)
    }

    /// Gives back what it took from the queue with this prefix, if it took anything.
    pub(super) async fn give_back(&self, link: &Link, prefix: &[u8], terms: &Terms) -> Result<()> {
        let mut rank = b"0".to_vec();
        while !rank.is_empty() {
            let args = vec![terms.worker.as_str().into(), self.leases.clone(), rank];
            let answer = link.call("give leases back", &DISOWN, &[prefix.to_vec()], args).await?;
            rank = Places::of(Value::Array(vec![answer]))?.bytes()?;
        }
        Ok(())
    }
}
