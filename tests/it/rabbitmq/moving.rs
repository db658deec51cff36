//! Moving jobs between brokers of which one is RabbitMQ: what is refused before anything is connected to.

use promptq_tests::process::{Home, Said};

#[test]
fn one_ledger_cannot_serve_both_ends() {
    let home = Home::new();
    let moving = |from: &str, to: &str, ledger: &str| {
        let mut command = home.program("promptq", &["broker", "move", "--from", from, "--to", to, "--yes"]);
        let rabbit = if from.starts_with("amqp") { from } else { to };
        Said::of(command.env("PROMPTQ_BROKER", rabbit).env("PROMPTQ_LEDGER", ledger).env("PROMPTQ_STORE", "s3://none"))
    };
    // Port 9 answers nobody here.
    let (rabbit, other) = ("amqp://127.0.0.1:9/one", "amqp://127.0.0.1:9/two");
    let redis = "redis://127.0.0.1:9";
    moving(rabbit, other, redis).ends(2).says(&["same-ledger"]);
    moving("redis://me:x@127.0.0.1:9/0", rabbit, redis).ends(2).says(&["same-ledger"]);
    moving(rabbit, redis, redis).ends(2).says(&["same-ledger"]);
    moving("redis://127.0.0.1:9/1", rabbit, redis).ends(7);
}
