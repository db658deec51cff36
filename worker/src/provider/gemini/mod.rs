//! Gemini's generateContent.

pub(super) mod answer;
pub(super) mod failure;
pub(super) mod request;
pub(super) mod stream;
