//! What caps do to the jobs of a forecast, by figures worked out by hand.

use promptq_common::broker::Broker;
use promptq_common::job::{BatchName, Extras, Queue};
use promptq_common::limits::{Ask, Cap, CapView, Heard, Measure, Per, Portion, Rule, change};
use promptq_common::work::{Input, Work};
use serde_json::json;

use super::tests::{ACME, config, forecaster, job, of};
use super::weigh::in_force;
use super::*;

/// 5,000 jobs, each of $0.0002248 most likely, at most $0.00034, reserved as $0.0003728: over a broker where these were
/// changed.
async fn weighed(settings: &str, broker: &Broker, max_cost: Option<&str>) -> Forecast {
    weighing(settings, broker, max_cost, &[(5_000, job("fast", 360, Some(400)))]).await
}

/// So many of these.
async fn weighing(settings: &str, broker: &Broker, max_cost: Option<&str>, jobs: &[(usize, Job)]) -> Forecast {
    let (queue, batch) = (Queue::standard(), BatchName::new("nov").unwrap());
    let whose = (&queue, &batch, max_cost.map(|most| most.parse().unwrap()));
    let forecaster = forecaster(settings).weighing(broker.ledger(), &config(settings), whose).await.unwrap();
    let mut forecast = forecaster.forecast();
    for (times, job) in jobs {
        let share = forecaster.share(job);
        (0..*times).for_each(|_| forecast.add(share.clone()));
    }
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
    assert!(line("0.0004").await.contains("about 1 of 5,000 jobs fit"));
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
    let waits = "about 889 of 5,000 jobs fit into $0.2, the rest wait until some of it is free again";
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
    let heard = |most| Heard { measure: Measure::Requests, per: Per::Minute, most, left: None };
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
    let (unbounded, unpriced) = (job("fast", 36, None), job("acme/slow", 36, Some(9)));
    let jobs = [(5_000, job("fast", 360, Some(400))), (1, unbounded.clone()), (1, unpriced)];
    assert_eq!(lines_of(&of(ACME, &jobs), "money"), Vec::<String>::new(), "nothing caps it");
    let forecast = weighing(ACME, &broker, Some("9"), &jobs).await;
    let never = "money   never called while cost is limited";
    let price = format!("{never}: 1 job, waiting: nobody knows their price");
    let answer = "dead, as no_max_tokens: nobody knows how long the answer may be (--max-tokens)";
    let room = "money   batch:nov: $9 (--max-cost): room for the 5,000 that can be called".to_owned();
    assert_eq!(lines_of(&forecast, "money"), [room, price, format!("{never}: 1 job, {answer}")]);
    let json = forecast.json();
    assert_eq!((&json["uncalled_under_caps"], &json["dead_under_caps"]), (&json!(2), &json!(1)));
    // What will never be called asks nothing of the account.
    let settings = format!("{ACME}[limits.acme]\nrequests = \"1/min\"\n");
    let all_dead = weighing(&settings, &broker, Some("9"), &[(90, unbounded)]).await;
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
        let jobs = [(120, job(model, 360, Some(400))), (5_000, job("fast", 360, Some(400)))];
        lines_of(&weighing(&settings, &broker, None, &jobs).await, "limits")
    };
    let mock = "limits  mock: 60 requests/min: bound by requests, about 2m with any number of workers";
    for model in ["mock", "mock:seed=1", "mock/slow"] {
        assert_eq!(lines("9", model).await, [mock], "{model}: as long as the budget binds nothing");
        let both = lines("0.5", model).await;
        assert!(both.len() == 2 && both[0].starts_with("limits  budget:default: ") && both[1] == mock, "{both:?}");
    }
    let settings = "[queues.default]\nbudget = \"9/day\"\n[limits.mock]\nrequests = \"60/min\"\n";
    let forecast = weighing(settings, &broker, None, &[(1, job("mock", 9, None))]).await;
    assert_eq!(lines_of(&forecast, "limits"), ["limits  mock: 60 requests/min: room for all"], "neither binds");
}

#[tokio::test]
async fn a_job_that_is_larger_than_a_limit_dies_of_it_and_is_in_nothing_else() {
    let broker = Broker::memory();
    let settings = |limit: &str| format!("{ACME}[limits.acme]\n{limit}\n");
    // 10,000 tokens, and 100.
    let (large, small) = (job("fast", 36_000, Some(9)), job("fast", 360, Some(9)));
    let jobs = [(5, large.clone()), (20, small.clone())];
    let forecast = weighing(&settings("input_tokens = \"1k/min\""), &broker, None, &jobs).await;
    let dead = "limits  never called: 5 jobs, dead, as larger_than_limit: they need more than all of acme: 1000 input_tokens/min";
    let paced = "limits  acme: 1000 input_tokens/min: bound by input_tokens, about 2m with any number of workers";
    assert_eq!(lines_of(&forecast, "limits"), [paced, dead]);
    let json = forecast.json();
    assert_eq!((&json["jobs"], &json["input_tokens"], &json["held"]), (&json!(20), &json!(2_000), &json!(0)));
    assert_eq!((&json["larger_than_limit"], &json["waiting_for_more"]), (&json!(5), &json!(0)));
    let never = async |settings: &str, job: &Job| {
        let forecast = weighing(settings, &broker, None, &[(1, job.clone())]).await;
        let json = forecast.json();
        assert_eq!(
            forecast.lines().len() == 1,
            json["jobs"] == 0,
            "nothing else is said of it: {:?}",
            forecast.lines()
        );
        [&json["larger_than_limit"], &json["waiting_for_more"]].map(|count| count.as_u64().unwrap())
    };
    // OpenAI counts the longest answer at once, as long as it is told how long; others count what comes.
    let longest = |body: &str| {
        let input = Input::Request { url: "/v1/chat/completions".into(), body: body.into() };
        Job { work: Work { model: Some("fast".into()), input }, ..small.clone() }
    };
    let tokens = settings("tokens = \"1k/min\"");
    assert_eq!(never(&tokens, &longest(r#"{"max_tokens":600}"#)).await, [0, 0]);
    assert_eq!(never(&tokens, &longest(r#"{"max_tokens":600,"n":2}"#)).await, [1, 0]);
    assert_eq!(never(&tokens, &longest("{}")).await, [0, 0]);
    let others = tokens.replace("/v1\"", "/v1\"\napi = \"anthropic\"");
    assert_eq!(never(&others, &job("fast", 360, Some(4_000))).await, [0, 0]);
    assert_eq!(never(&settings("requests = \"1/min\"\nconcurrent = 1"), &large).await, [0, 0]);
    // One that a person lowered may be raised again.
    let tokens = settings("input_tokens = \"1k/min\"");
    let set = async |most| {
        let set = |pool: &mut promptq_common::limits::Pool, now| {
            pool.set(now, Measure::InputTokens, Per::Minute, Some(most));
        };
        change(broker.ledger(), "acme", set).await.unwrap();
    };
    set(99).await;
    assert_eq!([never(&tokens, &small).await, never(&tokens, &large).await], [[0, 1], [1, 0]]);
    let waits = lines_of(&weighing(&tokens, &broker, None, &[(1, small)]).await, "limits").concat();
    let says = "limits  never called: 1 job, waiting: they need more than all of acme: 99 input_tokens/min (set)";
    assert_eq!(waits, says);
    set(20_000).await;
    assert_eq!(never(&tokens, &large).await, [0, 0], "raised");
}

#[tokio::test]
async fn a_job_that_is_dearer_than_a_cap_waits_and_is_in_nothing_else() {
    let broker = Broker::memory();
    // Reserved as $0.0003728 and $0.0001328.
    let jobs = [(3, job("fast", 360, Some(400))), (20, job("fast", 360, Some(100)))];
    let waits = |cap: &str| format!("money   never called: 3 jobs, waiting: they may cost more than all of {cap}");
    let account = |most: &str| format!("{ACME}[limits.acme]\nusd = \"{most}/day\"\n");
    let budget = format!("{ACME}[queues.default]\nbudget = \"0.0002/day\"\n");
    for (settings, max_cost, cap) in [
        (account("0.00037"), None, "acme: $0.00037/day"),
        (budget.clone(), None, "budget:default: $0.0002/day"),
        (ACME.to_owned(), Some("0.0002"), "batch:nov: $0.0002 (--max-cost)"),
        (account("0.00037"), Some("0.0002"), "batch:nov: $0.0002 (--max-cost)"),
    ] {
        let forecast = weighing(&settings, &broker, max_cost, &jobs).await;
        assert!(lines_of(&forecast, "money").contains(&waits(cap)), "{cap}: {:?}", forecast.lines());
        let json = forecast.json();
        assert_eq!((&json["jobs"], &json["waiting_for_more"]), (&json!(20), &json!(3)), "{cap}");
        let held = if max_cost.is_some() { 19 + 3 } else { 3 };
        assert_eq!((&json["held"], &json["larger_than_limit"]), (&json!(held), &json!(0)), "{cap}");
    }
    // What is spent of a cap comes back, or another would do.
    let caps = [cap(Measure::Usd, Per::Day, 373_000)];
    spent(&broker, "acme", &caps, dollars(373_000)).await;
    let forecast = weighing(&account("0.000373"), &broker, None, &jobs).await;
    assert_eq!((&forecast.json()["jobs"], &forecast.json()["waiting_for_more"]), (&json!(23), &json!(0)));
}

#[tokio::test]
async fn of_several_routes_the_ones_that_a_job_is_too_large_for_are_passed() {
    let broker = Broker::memory();
    let settings = format!(
        "{ACME}[providers.beta]\nbase_url = \"http://127.0.0.1:9/v1\"\n[prices.\"beta/m\"]\ninput = \"2\"\noutput = \"2\"\n\
         [models.safe]\nroutes = [\"acme/fast-2\", \"beta/m\"]\n[limits.acme]\ninput_tokens = \"1k/min\"\n"
    );
    let (large, small) = (job("safe", 36_000, Some(9)), job("safe", 360, Some(9)));
    let by = async |settings: &str, job: &Job| {
        let forecast = weighing(settings, &broker, None, &[(1, job.clone())]).await;
        let json = forecast.json();
        (json["priced_models"].to_string(), json["larger_than_limit"].as_u64(), json["waiting_for_more"].as_u64())
    };
    assert_eq!(by(&settings, &small).await, ("[\"acme/fast-2\"]".into(), Some(0), Some(0)));
    assert_eq!(by(&settings, &large).await, ("[\"beta/m\"]".into(), Some(0), Some(0)));
    let both = format!("{settings}[limits.beta]\ninput_tokens = \"2k/min\"\n");
    assert_eq!(by(&both, &large).await, ("[]".into(), Some(1), Some(0)));
    let told = lines_of(&weighing(&both, &broker, None, &[(1, large)]).await, "limits").concat();
    assert!(told.ends_with("they need more than all of beta: 2000 input_tokens/min"), "the last one's: {told}");
    let set = |pool: &mut promptq_common::limits::Pool, now| pool.set(now, Measure::InputTokens, Per::Minute, Some(9));
    change(broker.ledger(), "acme", set).await.unwrap();
    assert_eq!(by(&settings, &small).await, ("[]".into(), Some(0), Some(1)), "it waits where it may go one day");
}

#[tokio::test]
async fn what_calls_hold_of_a_cap_is_taken_too() {
    let broker = Broker::memory();
    let holds = async |key: &str, per| {
        let held = Portion { amounts: dollars(100_000_000), ..Portion::default() };
        let spent = vec![(0, dollars(200_000_000))];
        let ask = Ask { id: 1, seq: 1, caps: vec![cap(Measure::Usd, per, 500_000_000)], held, spent, ..Ask::default() };
        change(broker.ledger(), key, |pool, now| pool.ask(now, &ask)).await.unwrap();
    };
    holds("batch:nov", Per::Ever).await;
    holds("budget:default", Per::Day).await;
    // Of others, which are nobody's here.
    holds("batch:dec", Per::Ever).await;
    holds("budget:other", Per::Day).await;
    let settings = format!("{ACME}[queues.default]\nbudget = \"0.5/day\"\n");
    let forecast = weighed(&settings, &broker, Some("0.5")).await;
    let fit = "about 889 of 5,000 jobs fit into $0.2";
    assert_eq!(
        lines_of(&forecast, "money"),
        [
            format!("money   batch:nov: $0.5 (--max-cost), $0.3 used: {fit}, the rest are held"),
            format!("money   budget:default: $0.5/day, $0.3 used: {fit}, the rest wait until some of it is free again"),
        ]
    );
    let json = forecast.json();
    let keys: Vec<_> = json["limits"].as_array().unwrap().iter().map(|bound| bound["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["budget:default", "batch:nov"]);
}

#[tokio::test]
async fn a_freeze_of_a_model_takes_the_place_of_no_rule() {
    let broker = Broker::memory();
    let settings = format!("{ACME}[limits.\"acme/fast\"]\nrequests = \"5k/min\"\n");
    let line = async || lines_of(&weighed(&settings, &broker, None).await, "limits").concat();
    let paced = line().await;
    assert!(paced.starts_with("limits  acme/fast: 5000 requests/min: bound by requests"), "{paced}");
    change(broker.ledger(), "acme/fast-2", |pool, now| pool.freeze(now, 60_000, "slow down")).await.unwrap();
    assert_eq!(line().await, paced);
}

#[test]
fn the_word_that_counts_for_a_cap_is_a_persons_then_a_headers_then_the_settings() {
    let view = |configured, set, learned, most| {
        let cap = cap(Measure::Requests, Per::Minute, most);
        CapView { cap, configured, set, learned, used: 0, held: 0, in_calls: 0 }
    };
    let none = i64::MAX;
    for (view, configured, says) in [
        (view(500, None, None, 500), Some(500), Some((500, "configured"))),
        (view(500, Some(100), Some(300), 100), Some(500), Some((100, "set"))),
        (view(none, Some(100), None, 100), None, Some((100, "set"))),
        (view(500, None, Some(300), 300), Some(500), Some((300, "learned"))),
        (view(500, None, Some(300), 150), Some(500), Some((300, "learned"))),
        (view(500, None, Some(900), 500), Some(500), Some((500, "configured"))),
        (view(none, None, Some(300), 300), None, None),
        (view(none, None, None, none), None, None),
        (view(none, None, None, none), Some(400), Some((400, "configured"))),
    ] {
        assert_eq!(in_force(&view, configured), says, "{view:?}");
    }
}
