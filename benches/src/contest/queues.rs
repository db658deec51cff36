//! Enqueue, drain and live on one kind of broker: round by round each contestant after the other, on an empty stage each.

use anyhow::Context;

use super::programs::{Count, Peer, Promptq, Who, told};
use super::{Form, Run, SMOKE};
use crate::report::Sample;
use crate::stage::{Hall, Kind, Stage};

const CELERY: Peer = Peer { name: "celery", results: true, bulk: false };
const DRAMATIQ: Peer = Peer { name: "dramatiq", results: false, bulk: false };
const BULLMQ: Peer = Peer { name: "bullmq", results: false, bulk: true };
const SIDEKIQ: Peer = Peer { name: "sidekiq", results: false, bulk: true };
const APALIS: Peer = Peer { name: "apalis", results: false, bulk: true };

/// All rounds of one contest.
pub(super) async fn hold(run: &mut Run, kind: Kind) -> anyhow::Result<()> {
    run.versions(kind);
    let hall = Hall::open(kind);
    let contestants = contestants(kind, run.plan.peers);
    for round in 1..=run.plan.rounds {
        for who in turns(&contestants, round) {
            for (measure, sample) in measured(&hall, who, run.plan.form).await.with_context(|| who.name().to_owned())? {
                let (contest, measure, contestant) =
                    (kind.name().to_owned(), measure.to_owned(), who.name().to_owned());
                run.note(Sample { contest, measure, contestant, round, ..sample });
            }
        }
    }
    Ok(())
}

/// Everybody, those first in one round last in the next: nobody always comes after the same one.
fn turns(contestants: &[Who], round: u32) -> Vec<Who> {
    let mut turns = contestants.to_vec();
    if round.is_multiple_of(2) {
        turns.reverse();
    }
    turns
}

fn contestants(kind: Kind, peers: bool) -> Vec<Who> {
    let mut all = vec![Who::Limit, Who::Promptq, Who::Bare];
    if kind != Kind::Sqlite {
        all.push(Who::Raw);
    }
    let asked: &[Peer] = match kind {
        _ if !peers => &[],
        Kind::Redis | Kind::RedisAlways => &[CELERY, BULLMQ, SIDEKIQ],
        Kind::Quorum | Kind::Classic => &[CELERY, DRAMATIQ],
        Kind::Sqlite => &[APALIS],
    };
    all.extend(asked.iter().copied().map(Who::Peer));
    all
}

/// What one contestant does in one round.
async fn measured(hall: &Hall, who: Who, form: Form) -> anyhow::Result<Vec<(&'static str, Sample)>> {
    let (first, second) = (hall.stage()?, hall.stage()?);
    let Counts { enqueue, drain, live } = counts(hall.kind, who, form);
    let mut samples = Vec::new();
    if who == Who::Promptq {
        samples.push(("enqueue", Promptq::on(&second)?.enqueue(enqueue.all()).await?));
        drop(second);
        let promptq = Promptq::on(&first)?;
        promptq.enqueue(drain.all()).await?;
        samples.push(("drain", promptq.drain(drain).await?));
        drop(first);
        let third = hall.stage()?;
        samples.push(("live", Promptq::on(&third)?.live(live).await?));
        return Ok(samples);
    }
    samples.push(("enqueue", told(&second, who, "enqueue", enqueue).await?));
    if matches!(who, Who::Peer(_)) {
        // What it put in is what it works off: enough of both, and each of its starts costs seconds.
        samples.push(("drain", told(&second, who, "work", drain).await?));
        return Ok(samples);
    }
    drop(second);
    fill(&first, who, drain).await?;
    samples.push(("drain", told(&first, who, "work", drain).await?));
    drop(first);
    let third = hall.stage()?;
    samples.push(("live", told(&third, who, "live", live).await?));
    Ok(samples)
}

async fn fill(stage: &Stage, who: Who, count: Count) -> anyhow::Result<()> {
    told(stage, who, "enqueue", count).await.map(drop)
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    enqueue: Count,
    drain: Count,
    live: Count,
}

/// Long enough for a rate, which is half a second and more for a look: by the rates seen when these were set.
fn counts(kind: Kind, who: Who, form: Form) -> Counts {
    let of = |full, quick, warmup: u64| Count {
        jobs: form.of(full, quick, SMOKE),
        warmup: warmup.min(form.of(warmup, warmup, SMOKE)),
    };
    let same = |count| Counts { enqueue: count, drain: count, live: count };
    match (who, kind) {
        (Who::Peer(CELERY), _) => same(of(5_000, 1_500, 300)),
        (Who::Peer(DRAMATIQ), _) => same(of(8_000, 3_000, 500)),
        (Who::Peer(_), _) => same(of(20_000, 8_000, 500)),
        (_, Kind::Redis | Kind::RedisAlways | Kind::Sqlite) => Counts {
            enqueue: of(200_000, 100_000, 2_000),
            drain: of(100_000, 40_000, 2_000),
            live: of(100_000, 40_000, 2_000),
        },
        (_, Kind::Quorum | Kind::Classic) => Counts {
            enqueue: of(40_000, 20_000, 2_000),
            drain: of(40_000, 15_000, 2_000),
            live: of(40_000, 15_000, 2_000),
        },
    }
}
