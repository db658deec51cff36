//! A run that takes stored answers: what it calls, what it pays, and what its results say of it.

use super::*;

#[test]
fn a_second_run_takes_the_answers_of_the_first_for_free() {
    let home = Home::new();
    home.rows("in.jsonl", 20);
    let run = |output: &str, more: &[&str]| {
        home.promptq(&[&["run", "in.jsonl", "-m", "exec:tee -a calls", "-o", output], more].concat())
    };
    let called = || std::fs::metadata(home.path("calls")).unwrap().len();
    let lines = |name: &str| -> BTreeMap<String, Value> {
        let text = std::fs::read_to_string(home.path(name)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line["promptq"].clone())).collect()
    };

    run("a.jsonl", &["--reuse", "1h"]).exits(0);
    let once = called();
    run("b.jsonl", &["--reuse", "1h"]).exits(0).says("20 succeeded (20 reused), $0");
    assert_eq!(called(), once);
    let (first, second) = (lines("a.jsonl"), lines("b.jsonl"));
    assert_eq!((first.len(), second.len()), (20, 20));
    for (id, again) in &second {
        let before = &first[id];
        assert_eq!((&again["reused_from"], &again["text"]), (&before["job_id"], &before["text"]), "{id}");
        assert_eq!((&before["reused_from"], &again["cost_usd"]), (&Value::Null, &"0".into()), "{id}");
    }

    run("c.jsonl", &[]).exits(0);
    assert_eq!(called(), once * 2);
    run("d.jsonl", &["--reuse", "8d"]).exits(2).says("they are kept for 7d").says("hint: ask for 7d at most");
}
