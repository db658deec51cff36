//! The exchange by which a virtual host knows its ledger. Nobody publishes to it, and what it names as its alternate
//! need not be there; but a server makes it once, and from then on refuses every declaration that names another: who was
//! first is decided in one step, without a message. What that means to people is `identity`'s.

use super::super::link::Link;
use super::talk::{Look, Refused, Talk};
use super::{Settings, or_error, wanted};
use crate::error::{Error, Kind, Result};
use crate::job::Queue;
use crate::ledger::LedgerId;

/// What a virtual host says to a ledger that would keep its records.
#[derive(Debug)]
pub(in crate::broker::amqp) enum Word {
    /// It is this one's, by now or for long.
    Ours,
    /// It is another's, whose identity begins like this where the server's words reach so far.
    Others(Option<String>),
    /// This user may not ask: the server's words.
    Untold(String),
}

/// Whether the virtual host has a ledger, or may have one: some users may not look. Makes nothing.
///
/// # Errors
/// When the server cannot be asked.
pub(in crate::broker::amqp) async fn has_ledger(link: &Link) -> Result<bool> {
    Talk::open(link).await?.finds(&wanted::ledger(None)).await
}

/// Makes the virtual host this ledger's if it is nobody's yet, and says whose it is. One frame; repeatable.
///
/// # Errors
/// When the server cannot be asked.
pub(in crate::broker::amqp) async fn name_ledger(link: &Link, ledger: LedgerId) -> Result<Word> {
    match Talk::open(link).await?.make_exchange(&wanted::ledger(Some(ledger))).await? {
        Ok(()) => Ok(Word::Ours),
        Err(Refused { code: 403, said, .. }) => Ok(Word::Untold(said)),
        Err(Refused { code: 406, said, .. }) => Ok(Word::Others(theirs(&said))),
        Err(refused) => Err(refused.error()),
    }
}

/// Makes the virtual host this ledger's, whosever it was. Dead in the middle: it is nobody's, and the next process's.
///
/// # Errors
/// `Conflict` while workers take jobs of these queues, or when another ledger came in between; `Denied` where the user
/// may not.
pub(in crate::broker::amqp) async fn renew_ledger(
    link: &Link,
    ledger: LedgerId,
    queues: &[Queue],
    settings: &Settings,
) -> Result<()> {
    const OP: &str = "give the virtual host another ledger";
    let mut talk = Talk::open(link).await?;
    // Who may not make what is shared may not say whose it is either.
    for exchange in wanted::exchanges() {
        or_error(talk.make_exchange(&exchange).await?)?;
    }
    for queue in queues {
        for lane in wanted::lanes(queue, &[], settings) {
            if let Some(Look { consumers: 1.., .. }) = talk.look(&lane.name).await? {
                let why = format!("workers take from {}, and would go on with the old one\nhint: stop them", lane.name);
                return Err(Error::new(Kind::Conflict, OP, why));
            }
        }
    }
    or_error(talk.delete_exchange(wanted::LEDGER).await?)?;
    match talk.make_exchange(&wanted::ledger(Some(ledger))).await? {
        Ok(()) => Ok(()),
        Err(Refused { code: 406, .. }) => {
            Err(Error::new(Kind::Conflict, OP, "a process with another ledger was faster\nhint: stop it"))
        }
        Err(refused) => Err(refused.error()),
    }
}

/// The first digits of the identity that the server has; it cuts its words at 255 bytes.
fn theirs(said: &str) -> Option<String> {
    let (_, current) = said.split_once("current is ")?;
    // 3.10 puts the value there, later ones "the value" before it.
    let (_, identity) = current.split_once(&format!("'{}.", wanted::LEDGER))?;
    identity.get(..8).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit())).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_ledger_is_named_where_the_servers_words_reach_so_far() {
        let old = "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'pq1.ledger' in vhost '/': received \
                   'pq1.ledger.01234567-89ab' but current is 'pq1.ledger.fedcba98-7654-32";
        let new = "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'pq1.ledger' in vhost '/': received \
                   the value 'pq1.ledger.01234567-89ab' of type 'longstr' but current is the value \
                   'pq1.ledger.fedcba98-7654-32";
        for said in [old, new] {
            assert_eq!(theirs(said).as_deref(), Some("fedcba98"));
        }
        let shorter = new.strip_suffix("8-7654-32").unwrap();
        for cut in [shorter, "inequivalent arg 'type': received 'fanout' but current is 'direct'", ""] {
            assert_eq!(theirs(cut), None, "{cut}");
        }
    }
}
