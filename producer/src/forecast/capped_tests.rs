//! What caps do to the jobs of a forecast, by figures worked out by hand.

use promptq_common::broker::Broker;
use promptq_common::job::{BatchName, Extras, Queue};
use promptq_common::limits::{Ask, Cap, Measure, Per, Rule, change};
use serde_json::json;

use super::tests::{ACME, config, forecaster, job, of};
use super::*;

/// 5,000 jobs, each of $0.0002248 most likely, at most $0.00034, reserved as some $0.0004.
fn many(settings: &str, broker: &[String]) -> Forecast {
    let forecaster = forecaster(settings).beside(broker.iter().cloned().collect(), None);
    let (mut forecast, share) = (forecaster.forecast(), forecaster.share(&job("fast", 360, Some(400))));
    (0..5_000).for_each(|_| forecast.add(share.clone()));
    forecast
}

/// As it stands over a broker where these were changed.
async fn weighed(settings: &str, broker: &Broker, max_cost: Option<&str>) -> Forecast {
    let mut forecast = many(settings, &broker.ledger().limits().await.unwrap());
    let (queue, batch) = (Queue::standard(), BatchName::new("nov").unwrap());
    let max_cost = max_cost.map(|most| most.parse().unwrap());
    forecast.weigh(broker.ledger(), &config(settings), (&queue, &batch, max_cost)).await.unwrap();
    forecast
}

/// A worker has spent so much under a key; what its settings say of it.
async fn spent(broker: &Broker, key: &str, rule: &[Cap], amounts: Amounts) {
    let ask = Ask { id: 1, seq: 1, caps: rule.to_vec(), spent: vec![(0, amounts)], ..Ask::default() };
    change(broker.ledger(), key, |pool, now| pool.ask(now, &ask)).await.unwrap();
}

const fn cap(measure: Measure, per: Per, most: i64) -> Cap {
    Cap { measure, per, most }
}

fn dollars(nanos: i64) -> Amounts {
    Amounts { usd: nanos, ..Amounts::NONE }
}

pub(super) fn lines_of(forecast: &Forecast, label: &str) -> Vec<String> {
    forecast.lines().into_iter().filter(|line| line.starts_with(label)).collect()
}

#[tokio::test]
async fn a_cap_on_a_batch_says_how_many_jobs_fit_and_that_the_rest_are_held() {
    let broker = Broker::memory();
    let line = async |most| lines_of(&weighed(ACME, &broker, Some(most)).await, "money").concat();
    // (0.5 - 0.0004) / 0.0002248, and the one that is begun with what is left.
    assert_eq!(
        line("0.5").await,
        "money   batch:nov: $0.5 (--max-cost): about 2,223 of 5,000 jobs fit into $0.5, the rest are held"
    );
    assert!(line("0.0001").await.contains("about 0 of 5,000 jobs fit"));
    assert_eq!(line("3").await, "money   batch:nov: $3 (--max-cost): room for all");
    let most = line("1.3").await;
    assert!(
        most.contains("room for all, or for about 3,8") && most.ends_with("if all answers are the longest"),
        "{most}"
    );
    // What earlier jobs of the batch have cost is gone.
    let caps = [cap(Measure::Usd, Per::Ever, 500_000_000)];
    spent(&broker, "batch:nov", &caps, dollars(275_200_000)).await;
    let json = weighed(ACME, &broker, Some("0.5")).await.json();
    let bound = json["limits"].as_array().unwrap().iter().find(|bound| bound["key"] == "batch:nov").unwrap();
    assert_eq!((&bound["used"], &bound["from"]), (&json!("0.2752"), &json!("--max-cost")));
    assert_eq!((&json["held"], &bound["fit"]["likely"]), (&json!(4_001), &json!(999)));
}

#[tokio::test]
async fn budgets_and_what_is_spent_of_them_say_what_waits() {
    let (broker, budget) = (Broker::memory(), cap(Measure::Usd, Per::Day, 500_000_000));
    let settings = format!("{ACME}[queues.default]\nbudget = \"0.5/day\"\n[limits.acme]\nusd = \"20/day\"\n");
    spent(&broker, "budget:default", &[budget], dollars(300_000_000)).await;
    let forecast = weighed(&settings, &broker, None).await;
    let waits = "about 888 of 5,000 jobs fit into $0.2, the rest wait until some of it is free again";
    assert_eq!(lines_of(&forecast, "money"), [format!("money   budget:default: $0.5/day, $0.3 used: {waits}")]);
    // $0.3 and 5,000 x 0.0002248 are 2.848 days of it.
    assert_eq!(
        lines_of(&forecast, "limits"),
        ["limits  budget:default: $0.5/day, $0.3 used: bound by money, about 2d20h with any number of workers"]
    );
    assert_eq!(forecast.json()["held"], json!(0), "it comes back");
    // A batch's cap that holds more back leaves the budget room for what goes.
    let both = weighed(&settings, &broker, Some("0.1")).await;
    let [money, other] = lines_of(&both, "money").try_into().unwrap();
    assert!(
        money.starts_with("money   batch:nov: $0.1 (--max-cost): about 444 of") && other.contains("budget:default")
    );
    assert!(lines_of(&both, "limits")[0].ends_with("room for all"), "{:?}", both.lines());
}

#[tokio::test]
async fn caps_that_people_set_and_that_headers_taught_are_weighed() {
    let broker = Broker::memory();
    let settings = format!("{ACME}[limits.acme]\nrequests = \"5k/min\"\nconcurrent = 4\n");
    let line = async || lines_of(&weighed(&settings, &broker, None).await, "limits").join(" | ");
    let at_once = "limits  acme: 4 concurrent: as long as 1,250 calls one after the other, with any number of workers";
    let paced = "bound by requests, about 50s with any number of workers";
    assert_eq!(line().await, format!("limits  acme: 5000 requests/min: {paced} | {at_once}"));
    let caps = config(&settings).limits[0].caps.clone();
    let heard = |most| promptq_common::limits::Heard { measure: Measure::Requests, per: Per::Minute, most, left: None };
    let ask = |seq, most| Ask { id: 1, seq, caps: caps.clone(), heard: vec![(0, heard(most))], ..Ask::default() };
    change(broker.ledger(), "acme", |pool, now| pool.ask(now, &ask(1, 500))).await.unwrap();
    let bound =
        |said| format!("limits  acme: {said}: bound by requests, about {{}} with any number of workers | {at_once}");
    assert_eq!(line().await, bound("500 requests/min (learned)").replace("{}", "10m"));
    let set = async |most| {
        let set = |pool: &mut promptq_common::limits::Pool, now| pool.set(now, Measure::Requests, Per::Minute, most);
        change(broker.ledger(), "acme", set).await.unwrap();
    };
    set(Some(100)).await;
    assert_eq!(line().await, bound("100 requests/min (set)").replace("{}", "50m"));
    // A rule that other hosts have, and nobody here.
    let rule = Rule { key: "acme/fast".into(), caps: vec![cap(Measure::Requests, Per::Day, 2_500)], adaptive: false };
    spent(&broker, &rule.key, &rule.caps, Amounts { requests: 1_250, ..Amounts::NONE }).await;
    let day =
        "limits  acme/fast: 2500 requests/day, 1,250 used: bound by requests, about 2d12h with any number of workers";
    assert_eq!(line().await, format!("{day} | {at_once}"), "beside the account's");
}

#[tokio::test]
async fn what_nobody_can_reckon_is_told_where_money_is_capped() {
    let broker = Broker::memory();
    let mut forecast = many(ACME, &[]);
    let forecaster = forecaster(ACME);
    forecast.add(forecaster.share(&job("fast", 36, None)));
    forecast.add(forecaster.share(&job("acme/slow", 36, Some(9))));
    assert_eq!(lines_of(&forecast, "money"), Vec::<String>::new(), "nothing caps it");
    let (queue, batch) = (Queue::standard(), BatchName::new("nov").unwrap());
    let max_cost = Some(Usd::from_nanos(9_000_000_000));
    forecast.weigh(broker.ledger(), &config(ACME), (&queue, &batch, max_cost)).await.unwrap();
    let never = "money   never called while cost is limited";
    let price = format!("{never}: 1 job, waiting: nobody knows their price");
    let answer = "dead, as no_max_tokens: nobody knows how long the answer may be (--max-tokens)";
    let room = "money   batch:nov: $9 (--max-cost): room for the 5,000 that can be called".to_owned();
    assert_eq!(lines_of(&forecast, "money"), [room, price, format!("{never}: 1 job, {answer}")]);
    let json = forecast.json();
    assert_eq!((&json["uncalled_under_caps"], &json["dead_under_caps"]), (&json!(2), &json!(1)));
    // What will never be called asks nothing of the account.
    let settings = format!("{ACME}[limits.acme]\nrequests = \"1/min\"\n");
    let mut all_dead = of(&settings, &[(90, job("fast", 36, None))]);
    all_dead.weigh(broker.ledger(), &config(&settings), (&queue, &batch, max_cost)).await.unwrap();
    assert_eq!(lines_of(&all_dead, "limits"), ["limits  acme: 1 requests/min: room for all"]);
    assert_eq!(
        lines_of(&all_dead, "money"),
        [
            "money   batch:nov: $9 (--max-cost): none of 90 jobs can be called".to_owned(),
            format!("{never}: 90 jobs, {answer}")
        ]
    );
}

#[test]
fn jobs_with_a_cap_of_their_own_are_told_that_it_ends() {
    let own = |most: &str, max_tokens| {
        let extras = Extras { max_cost: Some(most.parse().unwrap()), ..Extras::default() };
        Job { extras: extras.kept(), ..job("fast", 360, max_tokens) }
    };
    let told = |job: Job| lines_of(&of(ACME, &[(3, job)]), "money").concat();
    assert_eq!(told(own("1", Some(400))), "");
    assert!(told(own("1", None)).contains("3 jobs, dead, as no_max_tokens"), "{}", told(own("1", None)));
    let dear = told(own("0.0001", Some(400)));
    assert!(
        dear.ends_with("3 jobs, perhaps dead, as larger_than_max_cost: they may cost more than their own max_cost"),
        "{dear}"
    );
    // Who has the model bounds its answers.
    let claude = |model: &str| {
        let extras = Extras { max_cost: Some(Usd::from_nanos(9_000_000_000)), ..Extras::default() };
        lines_of(&of("", &[(1, Job { extras: extras.kept(), ..job(model, 36, None) })]), "money").concat()
    };
    assert_eq!(claude("anthropic/claude-haiku-4-5"), "");
    assert!(claude("gpt-4o").contains("no_max_tokens") && claude("fast").contains("waiting"), "{}", claude("fast"));
}

#[tokio::test]
async fn a_limit_has_its_line_beside_a_budget() {
    let broker = Broker::memory();
    let lines = async |budget: &str, model: &str| {
        let settings =
            format!("{ACME}[queues.default]\nbudget = \"{budget}/day\"\n[limits.mock]\nrequests = \"60/min\"\n");
        let forecaster = forecaster(&settings);
        let (mut forecast, share) = (forecaster.forecast(), forecaster.share(&job(model, 360, Some(400))));
        let fast = forecaster.share(&job("fast", 360, Some(400)));
        (0..120).for_each(|_| forecast.add(share.clone()));
        (0..5_000).for_each(|_| forecast.add(fast.clone()));
        let of = (&Queue::standard(), &BatchName::new("nov").unwrap(), None);
        forecast.weigh(broker.ledger(), &config(&settings), of).await.unwrap();
        lines_of(&forecast, "limits")
    };
    let mock = "limits  mock: 60 requests/min: bound by requests, about 2m with any number of workers";
    for model in ["mock", "mock:seed=1", "mock/slow"] {
        assert_eq!(lines("9", model).await, [mock], "{model}: as long as the budget binds nothing");
        let both = lines("0.5", model).await;
        assert!(both.len() == 2 && both[0].starts_with("limits  budget:default: ") && both[1] == mock, "{both:?}");
    }
    let settings = "[queues.default]\nbudget = \"9/day\"\n[limits.mock]\nrequests = \"60/min\"\n";
    let forecaster = forecaster(settings);
    let mut forecast = forecaster.forecast();
    forecast.add(forecaster.share(&job("mock", 9, None)));
    let of = (&Queue::standard(), &BatchName::new("nov").unwrap(), None);
    forecast.weigh(broker.ledger(), &config(settings), of).await.unwrap();
    assert_eq!(lines_of(&forecast, "limits"), ["limits  mock: 60 requests/min: room for all"], "neither binds");
}
