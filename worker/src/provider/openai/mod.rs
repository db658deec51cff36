//! OpenAI's API and the servers that speak it.

pub(super) mod answer;
pub(super) mod failure;
pub(super) mod request;
pub(super) mod stream;
