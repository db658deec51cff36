//! What `promptq doctor` says of what is on this machine, and that it makes and leaves nothing there.

use std::collections::BTreeSet;
use std::path::PathBuf;

use promptq_tests::fixture::job;
use promptq_tests::process::{Home, Said};
use promptq_tests::steps::put_one;

/// Every file and folder below a home.
fn everything(home: &Home) -> BTreeSet<PathBuf> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![home.path("")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            folders.extend(path.is_dir().then(|| path.clone()));
            // SQLite's own, while somebody has the file open.
            let passing = ["db-wal", "db-shm"].iter().any(|end| path.extension().is_some_and(|found| found == *end));
            found.extend((!passing).then_some(path));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_leaves_nothing_behind() {
    let home = Home::new();
    let store = format!("file://{}", home.path("a/store").display());
    let ask = || home.promptq(&["doctor", "--store", &store]).ends(0);
    let before = everything(&home);
    let said = ask().prints(&["ok      broker: sqlite://", "ok      store: file://"]);
    assert_eq!(said.stdout.matches("not there yet; its first use makes it").count(), 2, "{}", said.stdout);
    assert_eq!(everything(&home), before);
    put_one(&home.broker().await, job()).await;
    std::fs::create_dir_all(home.path("a/store")).unwrap();
    let before = everything(&home);
    ask().prints(&["connected, and may be used", "writes, reads, creates only once"]);
    assert_eq!(everything(&home), before);
    let queues = home.promptq(&["queues", "list", "--json", "--all"]).ends(0).json();
    assert_eq!(queues["items"].as_array().unwrap().len(), 1, "{queues}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_what_is_ill() {
    let home = Home::new();
    let well = home.promptq(&["doctor", "--json"]).ends(0).json();
    assert_eq!(well["healthy"], true);
    let store = format!("file://{}/store", home.write("notes.txt", "").display());
    let ill = home.promptq(&["doctor", "--store", &store]).ends(1);
    ill.prints(&["FAILED  store: ", "notes.txt: not a directory", "ok      broker: "]);
    let far = home.promptq(&["doctor", "--broker", "redis://me:hunter2@far"]).ends(7);
    far.prints(&["FAILED  broker: ", "me:***@far"]);
    let mut command = home.program("promptq", &["doctor"]);
    // Port 9 answers nobody here.
    let said = Said::of(command.env("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")).ends(7);
    said.prints(&["FAILED  provider: openai: http://127.0.0.1:9/v1/models: cannot be reached"]);
}
