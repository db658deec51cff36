//! What only this backend promises; the contract itself is the conformance suite's.
