//! One API key: its secret as it is given out once, what is kept of it, what it may do. Where keys are kept is
//! `keyring.rs`.

use std::fmt;
use std::str::FromStr;

use promptq_common::job::Queue;
use promptq_common::time::Timestamp;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The first part of its secret, which says nothing of the rest: what it is looked up, listed and logged by.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// SHA-256 of the whole secret, hexadecimal.
    pub sha256: String,
    /// What it may do.
    pub role: Role,
    /// Where it may do that; everywhere if there are none.
    pub queues: Vec<Queue>,
    /// Requests a second; as `gateway.rate_per_key` says if there is none.
    pub rate: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// It is good for nothing from then on.
    pub expires_at: Option<Timestamp>,
}

/// What a key may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See jobs, results and queues.
    Viewer,
    /// Submit jobs.
    Submitter,
    /// Cancel jobs.
    Operator,
    /// Whatever there is.
    Admin,
}

/// A key in the clear: for whoever asked for it, and never for a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What secrets begin with, so that they are known where they should not be.
const BEGINS: &str = "pq_";
/// Digits of the part that may be known.
const ID_DIGITS: usize = 12;
/// Digits of the part that may not: 256 bits.
const SECRET_DIGITS: usize = 64;

impl Secret {
    /// A new one.
    pub fn random() -> Self {
        let (mut id, mut secret) = ([0; ID_DIGITS / 2], [0; SECRET_DIGITS / 2]);
        let mut dice = rand::rng();
        dice.fill_bytes(&mut id);
        dice.fill_bytes(&mut secret);
        Self(format!("{BEGINS}{}_{}", hex(&id), hex(&secret)))
    }

    /// One as a client gives it; `None` if it cannot be one.
    pub fn read(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(BEGINS)?.split_once('_')?;
        let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let fits = id.len() == ID_DIGITS && secret.len() == SECRET_DIGITS && is_hex(id) && is_hex(secret);
        fits.then(|| Self(text.to_owned()))
    }

    /// The part that may be known.
    pub fn id(&self) -> &str {
        self.0.rsplit_once('_').map_or("", |(id, _)| id)
    }

    /// Itself, to be given out.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn digest(&self) -> String {
        hex(&Sha256::digest(self.0.as_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_***", self.id())
    }
}

impl Key {
    /// What is kept of `secret`.
    pub fn of(secret: &Secret, name: String, role: Role, queues: Vec<Queue>) -> Self {
        Self {
            id: secret.id().to_owned(),
            name,
            sha256: secret.digest(),
            role,
            queues,
            rate: None,
            created_at: Timestamp::now(),
            expires_at: None,
        }
    }

    /// Whether `secret` is this key's. Takes as long whatever it is.
    pub fn is_of(&self, secret: &Secret) -> bool {
        let (ours, theirs) = (self.sha256.as_bytes(), secret.digest());
        let differences = ours.iter().zip(theirs.as_bytes()).fold(0, |found, (a, b)| found | (a ^ b));
        std::hint::black_box(differences) == 0 && ours.len() == theirs.len()
    }

    /// Whether it was good for something once and is no more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether it may do anything in this queue.
    pub fn covers(&self, queue: &Queue) -> bool {
        self.queues.is_empty() || self.queues.contains(queue)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let roles = [Self::Viewer, Self::Submitter, Self::Operator, Self::Admin];
        let meant = roles.into_iter().find(|role| role.to_string() == text);
        meant.ok_or_else(|| format!("{text:?} is not viewer, submitter, operator or admin"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &Secret) -> Key {
        Key::of(secret, "ci".into(), Role::Submitter, vec![Queue::standard()])
    }

    #[test]
    fn a_key_knows_its_secret_and_no_other_and_keeps_none() {
        let (secret, other) = (Secret::random(), Secret::random());
        let key = key(&secret);
        assert!(key.is_of(&secret) && !key.is_of(&other));
        let mut near = secret.expose().to_owned();
        let last = if near.pop() == Some('0') { '1' } else { '0' };
        assert!(!key.is_of(&Secret::read(&(near + &last.to_string())).unwrap()), "one digit is wrong");
        let cut = Key { sha256: key.sha256.get(..10).unwrap().to_owned(), ..key.clone() };
        assert!(!cut.is_of(&secret), "half a hash is none");
        let (_, hidden) = secret.expose().rsplit_once('_').unwrap();
        assert!(!serde_json::to_string(&key).unwrap().contains(hidden) && !format!("{secret:?}").contains(hidden));
        assert_eq!(Secret::read(secret.expose()).as_ref(), Some(&secret));
    }

    #[test]
    fn what_cannot_be_a_secret_is_none() {
        let secret = Secret::random();
        let whole = secret.expose();
        let shorter = whole.get(..whole.len() - 1).unwrap();
        for text in ["", "pq_", "Bearer", shorter, &whole.to_uppercase(), &format!("{whole}0"), whole.get(3..).unwrap()]
        {
            assert_eq!(Secret::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_key_is_good_in_its_queues_and_until_it_expires() {
        let key = key(&Secret::random());
        let other = Queue::new("other").unwrap();
        assert!(key.covers(&Queue::standard()) && !key.covers(&other));
        assert!(Key { queues: Vec::new(), ..key.clone() }.covers(&other));
        let at = Timestamp::from_millis(9);
        let key = Key { expires_at: Some(at), ..key };
        assert_eq!([8, 9].map(|now| key.is_expired(Timestamp::from_millis(now))), [false, true]);
        assert!(Role::Viewer < Role::Submitter && Role::Operator < Role::Admin);
    }
}
