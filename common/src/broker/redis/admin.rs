use super::*;
pub(super) const QUEUES: &str = "{pq}:queues";
pub(super) async fn claim_batch(_l: &Link, _n: &BatchName, q: &Queue) -> Result<Queue> {
    Ok(q.clone())
}
pub(super) async fn depth(_r: &Redis, _q: &Queue) -> Result<QueueView> {
    unimplemented!()
}
pub(super) async fn queues(_r: &Redis) -> Result<Vec<QueueView>> {
    unimplemented!()
}
pub(super) async fn pause(_r: &Redis, _q: &Queue, _x: Option<&str>) -> Result<()> {
    unimplemented!()
}
pub(super) async fn purge(_r: &Redis, _q: &Queue) -> Result<u64> {
    unimplemented!()
}
pub(super) async fn cancel(_r: &Redis, _q: &[JobId]) -> Result<Vec<Cancel>> {
    unimplemented!()
}
pub(super) async fn cancel_batch(_r: &Redis, _q: &BatchName) -> Result<CancelCounts> {
    unimplemented!()
}
pub(super) async fn redrive(_r: &Redis, _q: &[JobId]) -> Result<Vec<Redriven>> {
    unimplemented!()
}
pub(super) async fn drop_dead(_r: &Redis, _q: &[JobId]) -> Result<u64> {
    unimplemented!()
}
pub(super) async fn wake(_r: &Redis, _q: &HoldKey) -> Result<u64> {
    unimplemented!()
}
pub(super) async fn recover(_r: &Redis, _q: &WorkerId) -> Result<u64> {
    unimplemented!()
}
pub(super) async fn sweep(_r: &Redis, _q: &Retention) -> Result<Swept> {
    unimplemented!()
}

pub(super) async fn waiting(_r: &Redis, _q: &Queue, _a: Option<&str>, _l: usize) -> Result<Page<Envelope>> {
    unimplemented!()
}
pub(super) async fn forget(_r: &Redis, _q: &[(JobId, u32)]) -> Result<u64> {
    unimplemented!()
}
