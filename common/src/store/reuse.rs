//! Answers that are kept to be given again, under `reuse/<key>`: what they are found by, and the bytes they are. Whether one
//! may be kept or given is the worker's to say.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Store, hex};
use crate::error::{Error, Kind, Result};
use crate::job::JobId;
use crate::outcome::Body;
use crate::time::Timestamp;

/// The folder of a store that they are in.
pub const REUSE_FOLDER: &str = "reuse";
/// The most bytes of a body that is kept: what a store takes in one request, and what a record holds where there is none.
pub const REUSE_BYTES: u64 = 8 << 20;

/// How a question becomes a key. Another way gets another number, so that the two never meet.
const SCHEME: u8 = 1;
/// The first word of a kept answer; another form of it gets another number.
const FORM: &str = "promptq-reuse-1";
/// What is read beside the body: two lines, with names of at most some hundred bytes each.
const HEAD_BYTES: u64 = 16 << 10;

/// What a kept answer is found by: the same for the same question of the same tenant, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReuseKey([u8; 32]);

impl ReuseKey {
    /// SHA-256 over the tenant and over all that makes a question what it is, each with its length before it.
    pub fn new(tenant: Option<&str>, parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        hash.update([SCHEME, u8::from(tenant.is_some())]);
        for part in std::iter::once(tenant.unwrap_or_default()).chain(parts.iter().copied()) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self(hash.finalize().into())
    }

    fn place(&self) -> String {
        format!("{REUSE_FOLDER}/{}", hex(&self.0))
    }
}

/// An answer that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The job that it was paid for.
    pub job: JobId,
    /// When that job ended, by its worker's clock.
    pub at: Timestamp,
    /// HTTP status; 200 for runners without one.
    pub status_code: u16,
    /// The model that answered.
    pub model: Option<String>,
    /// Why it stopped.
    pub finish_reason: Option<String>,
    /// What it said.
    pub body: Body,
}

/// All but the body, as one line of JSON.
#[derive(Serialize, Deserialize)]
struct Head {
    job: JobId,
    at: Timestamp,
    status_code: u16,
    model: Option<String>,
    finish_reason: Option<String>,
    json: bool,
}

impl Store {
    /// Keeps an answer in place of what was kept under its key; `Ok` means durable. Dropped before it returns: the new one
    /// is there whole, or what was there before.
    ///
    /// # Errors
    /// `TooLarge` for a body above [`REUSE_BYTES`]; else the store's.
    pub async fn keep_reusable(&self, key: &ReuseKey, kept: &Kept) -> Result<()> {
        let (Body::Json(text) | Body::Text(text)) = &kept.body;
        if text.len() as u64 > REUSE_BYTES {
            let detail = format!("{} bytes; the limit is {REUSE_BYTES}", text.len());
            return Err(Error::new(Kind::TooLarge, "keep an answer", detail));
        }
        self.put(&key.place(), encode(key, kept)).await
    }

    /// The answer that was kept under a key last; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` or `TooLarge` for what is no whole answer kept under just this key; else the store's.
    pub async fn reusable(&self, key: &ReuseKey) -> Result<Option<Kept>> {
        let Some(bytes) = self.get(&key.place(), REUSE_BYTES + HEAD_BYTES).await? else { return Ok(None) };
        let damaged = || Error::new(Kind::Corrupt, "read a kept answer", format!("{} is damaged", key.place()));
        decode(key, bytes).map(Some).ok_or_else(damaged)
    }
}

fn encode(key: &ReuseKey, kept: &Kept) -> Vec<u8> {
    let (text, json) = match &kept.body {
        Body::Json(text) => (text, true),
        Body::Text(text) => (text, false),
    };
    let head = Head {
        job: kept.job,
        at: kept.at,
        status_code: kept.status_code,
        model: kept.model.clone(),
        finish_reason: kept.finish_reason.clone(),
        json,
    };
    // Nothing in it can fail to be written.
    let rest = format!("{}\n{text}", serde_json::to_string(&head).unwrap_or_default());
    format!("{FORM} {}\n{rest}", seal(key, &rest)).into_bytes()
}

fn decode(key: &ReuseKey, bytes: Vec<u8>) -> Option<Kept> {
    let text = String::from_utf8(bytes).ok()?;
    let (first, rest) = text.split_once('\n')?;
    if first.split_once(' ')? != (FORM, seal(key, rest).as_str()) {
        return None;
    }
    let (head, body) = rest.split_once('\n')?;
    let Head { job, at, status_code, model, finish_reason, json } = serde_json::from_str(head).ok()?;
    let body = if json { Body::Json(body.to_owned()) } else { Body::Text(body.to_owned()) };
    Some(Kept { job, at, status_code, model, finish_reason, body })
}

/// Over the key as well: an object that came under another's name is no answer.
fn seal(key: &ReuseKey, rest: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(key.0);
    hash.update(rest.as_bytes());
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::faulty::{Fault, faulty};
    use super::*;

    fn kept(body: Body) -> Kept {
        let (model, finish_reason) = (Some("m-2026".to_owned()), Some("stop".to_owned()));
        Kept { job: JobId::fresh(), at: Timestamp::now(), status_code: 200, model, finish_reason, body }
    }

    #[test]
    fn a_key_is_every_part_in_its_place_and_its_tenant() {
        let key = ReuseKey::new(None, &["a", "bc"]);
        assert_eq!(key, ReuseKey::new(None, &["a", "bc"]));
        let others = [
            ReuseKey::new(Some(""), &["a", "bc"]),
            ReuseKey::new(Some("a"), &["bc"]),
            ReuseKey::new(None, &["ab", "c"]),
            ReuseKey::new(None, &["bc", "a"]),
            ReuseKey::new(None, &["a", "bc", ""]),
        ];
        assert!(others.iter().all(|other| *other != key));
        // A change of the scheme must change its number: what this release kept is then never met by the next.
        assert_eq!(key.place().len(), "reuse/".len() + 64);
        assert_eq!(key.place(), "reuse/42c2cbc308e661a65367bc82b05ebbf68f95fd1828f9d206fa9b9a1d2dd8038b");
    }

    #[tokio::test]
    async fn an_answer_comes_back_as_it_was_kept_and_the_last_one_counts() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", home.path().display())).await.unwrap();
        let key = ReuseKey::new(None, &["q"]);
        assert_eq!(store.reusable(&key).await.unwrap(), None);
        for body in [Body::Text("grüße\n\nund mehr".into()), Body::Json("{\"a\":\n 1}".into()), Body::default()] {
            let kept = kept(body);
            store.keep_reusable(&key, &kept).await.unwrap();
            assert_eq!(store.reusable(&key).await.unwrap(), Some(kept));
        }
        assert_eq!(store.reusable(&ReuseKey::new(Some("acme"), &["q"])).await.unwrap(), None);
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = home.path().join(key.place());
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    }

    #[tokio::test]
    async fn what_is_not_whole_or_under_another_name_is_no_answer() {
        let store = Store::memory();
        let (key, other) = (ReuseKey::new(None, &["q"]), ReuseKey::new(None, &["r"]));
        let whole = encode(&key, &kept(Body::Text("the answer".into())));
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let newer = String::from_utf8(whole.clone()).unwrap().replace("reuse-1", "reuse-2").into_bytes();
        let half = whole[..whole.len() / 2].to_vec();
        for bytes in [Vec::new(), b"\n\n".to_vec(), vec![0xff; 9], half, flipped, newer] {
            store.put(&key.place(), bytes).await.unwrap();
            assert_eq!(store.reusable(&key).await.unwrap_err().kind(), Kind::Corrupt);
        }
        store.put(&other.place(), whole.clone()).await.unwrap();
        assert_eq!(store.reusable(&other).await.unwrap_err().kind(), Kind::Corrupt);
        store.put(&key.place(), whole).await.unwrap();
        assert!(store.reusable(&key).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_not_kept() {
        let store = Store::memory();
        let key = ReuseKey::new(None, &["q"]);
        let body = |bytes: u64| kept(Body::Text("x".repeat(usize::try_from(bytes).unwrap())));
        assert_eq!(store.keep_reusable(&key, &body(REUSE_BYTES + 1)).await.unwrap_err().kind(), Kind::TooLarge);
        assert_eq!(store.reusable(&key).await.unwrap(), None);
        store.keep_reusable(&key, &body(REUSE_BYTES)).await.unwrap();
        assert!(store.reusable(&key).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_write_that_fails_leaves_what_was_there() {
        let (store, switches) = faulty();
        let (key, first) = (ReuseKey::new(None, &["q"]), kept(Body::Text("first".into())));
        store.keep_reusable(&key, &first).await.unwrap();
        switches.next(Fault::Unwritten, "reuse/");
        assert!(store.keep_reusable(&key, &kept(Body::Text("second".into()))).await.is_err());
        assert_eq!(store.reusable(&key).await.unwrap(), Some(first));
    }
}
