//! promptq-worker: takes jobs from a queue and runs them. [`run`] is what `main`, `promptq run` and the tests call.

pub mod runner;

#[cfg(any())]
mod sketch {
    pub struct Parts {
        pub broker: Broker,
        pub store: Option<Store>,
        pub runners: Runners,
        pub settings: Settings,
    }
    pub async fn run(parts: Parts, stop: Stop) -> anyhow::Result<Drained>;
}
