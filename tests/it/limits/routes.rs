//! A model with two routes, as workers and two providers see it: one is overloaded, then well again. And its two tiers.

use std::time::Duration;

use promptq_common::outcome::Usd;
use promptq_common::record::End;
use promptq_common::time::Timestamp;
use promptq_common::work::Input;
use promptq_tests::fake::Fake;
use promptq_tests::fake::fault::FaultRule;
use promptq_tests::fake::kind::Kind;
use promptq_tests::metered::{Metered, Place, jobs};
use promptq_tests::process::Said;
use promptq_tests::site::{put, see, until};

const JOBS: u64 = 400;
const ANSWERS: &str =
    "[latency]\nfirst = { fixed = \"100ms\" }\n[[models]]\nname = \"*\"\ninput = \"1\"\noutput = \"10\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_to_the_second_route_while_the_first_is_overloaded_and_come_back() {
    let second = Fake::start(toml::from_str(ANSWERS).unwrap(), 8).unwrap();
    let config = format!(
        "[models.fast]\nroutes = [\"openai/gpt-4o\", \"second/small\"]\n[providers.second]\nbase_url = \"{}\"\n\
         api_key = \"not-a-key\"\n[prices.\"openai/gpt-4o\"]\ninput = \"1\"\noutput = \"10\"\n\
         [prices.\"second/small\"]\ninput = \"1\"\noutput = \"10\"\n",
        second.base_url_for("second")
    );
    let metered = Metered::new(Place::File, ANSWERS, &config);
    metered.fake.set_faults(&[FaultRule::new(Kind::Overloaded)]).unwrap();
    let broker = metered.broker().await;
    let jobs = jobs("default", "fast", usize::try_from(JOBS).unwrap());
    put(&broker, &jobs).await;
    let _workers = [1, 2].map(|number| metered.worker(number, &["--concurrency", "4"]));
    until("the second route has served some", async || (second.calls(0).len() >= 40).then_some(())).await;
    assert_eq!(metered.fake.bill().total.by_status.get(&200), None);
    metered.fake.set_faults(&[]).unwrap();
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    let views = until("all have ended", async || {
        let views = broker.ledger().fetch(&ids).await.unwrap();
        views.iter().all(|view| view.as_ref().is_some_and(|view| view.record.is_some())).then_some(views)
    })
    .await;
    let records: Vec<_> = views.into_iter().map(|view| *view.unwrap().record.unwrap()).collect();
    let by = |route: &str| {
        let is_by = |record: &&promptq_common::record::Record| {
            let origin = record.answer.as_ref().and_then(|answer| answer.origin.as_ref());
            origin.and_then(|origin| origin.route.as_deref()) == Some(route)
        };
        u64::try_from(records.iter().filter(is_by).count()).unwrap()
    };
    let (first, other) = (by("openai/gpt-4o"), by("second/small"));
    assert!(first + other == JOBS && first > 0 && other >= 40, "{first} and {other}");
    assert!(records.iter().all(|record| record.attempts == 1), "an overload spends no attempt");
    let (here, there) = (metered.fake.bill().total, second.bill().total);
    assert_eq!((here.by_status.get(&200), there.by_status.get(&200)), (Some(&first), Some(&other)), "each paid once");
    let overloaded = here.calls - first;
    assert!((10..=60).contains(&overloaded), "some before it is seen, then probes: {overloaded}");
    let mut cost = Usd::default();
    records.iter().filter_map(|record| record.history.cost).for_each(|one| cost += one);
    let mut billed = here.usd;
    billed += there.usd;
    assert_eq!(cost, billed, "what the records say is what the providers bill");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flex_tier_without_room_is_left_when_the_deadline_is_near_and_the_job_says_so() {
    let metered = Metered::new(Place::File, ANSWERS, "");
    let broker = metered.broker().await;
    metered.fake.set_faults(&[FaultRule { first: Some(1), ..FaultRule::new(Kind::FlexUnavailable) }]).unwrap();
    let mut late = jobs("default", "gpt-5.5", 1).remove(0);
    if let Input::Prompt(prompt) = &mut late.work.input {
        prompt.params = r#"{"service_tier":"flex"}"#.into();
    }
    // It has had a day, and has a minute left.
    late.deadline = late.created_at + Duration::from_secs(60);
    late.created_at = Timestamp::from_millis(late.deadline.as_millis() - 86_400_000);
    put(&broker, std::slice::from_ref(&late)).await;
    let worker = metered.worker(1, &[]);
    let record = until("it has ended", async || see(&broker, late.id).await.record).await;
    assert_eq!((record.end, metered.fake.calls(0).len()), (End::Succeeded, 2), "{:?}", record.cause);
    worker.leaves();
    let shown = Said::of(&mut metered.program("promptq", "nobody", &["jobs", "show", &late.id.to_string()]));
    shown.ends(0).prints(&["resource_unavailable", "ok  ", "moved from the flex to the standard tier"]);
}
