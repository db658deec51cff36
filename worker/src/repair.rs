//! Whether an answer that is not whole is put aside and its job called again. Each was paid for, so this is done where the
//! job's policy says so, and as often as that says; once it is over, the last answer is kept as it is.

use promptq_common::outcome::Reply;
use promptq_common::time::Timestamp;

use crate::cost::Bill;
use crate::money;
use crate::verdict::Case;

/// Decides. An answer is not put aside for a call that will never be made: its job's time is over, or its money.
pub(crate) fn again(reply: &Reply, bill: Bill<'_>, case: &Case<'_>) -> bool {
    let job = bill.job;
    reply.class.is_faulty()
        && case.head.history.put_aside() < job.policy.repair_attempts
        && job.deadline > Timestamp::now()
        && money::has_left(bill, case, reply.cost)
}
