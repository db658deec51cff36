//! `promptq limits reset`: forgets what workers share of a key, which also mends what nobody can read.

use promptq_common::limits::{look, reset};
use promptq_common::telemetry::{Act, audit};
use serde_json::json;

use super::known::{known, shared};
use crate::cli::Confirm;
use crate::confirm::{Deed, allowed};
use crate::context::Context;
use crate::limits::words;
use crate::problem::Result;

/// Asks, then forgets it.
pub(super) async fn run(cx: &Context, key: &str, confirm: &Confirm) -> Result<()> {
    let broker = shared(cx).await?;
    known(cx, key, |known| known == key).await?;
    let is_readable = look(broker.ledger(), key).await.is_ok();
    let what = match (words::is_budget(key), is_readable) {
        (true, true) => "what is spent counts from 0 again",
        (false, true) => "what is used counts from 0 again, what was set and learned is forgotten",
        (_, false) => "it cannot be read: what is used counts from 0 again, what was set and learned is forgotten",
    };
    let deed =
        Deed { verb: "reset", count: 1, subject: format!("limit {key} ({what})"), samples: Vec::new(), queue: None };
    if !allowed(cx, confirm, &deed).await? {
        return Ok(());
    }
    cx.printer.warn(&format!("{key}: {what}; until the windows are over more may be used than its limits allow"));
    let was_there = reset(broker.ledger(), key).await?;
    audit(&Act { action: "reset-limit", subject: key, reason: confirm.reason.as_deref(), count: u64::from(was_there) });
    if cx.printer.is_json() {
        return cx.printer.json(&json!({ "key": key, "reset": was_there }));
    }
    cx.printer.line(&if was_there { format!("{key} is reset") } else { format!("nothing was kept of {key}") })
}
