//! What each provider's API looks like: how a request is written, an answer read and a failure classed.
//! Nothing here touches the network; `runner/chat` does.

pub(crate) mod delay;
pub(crate) mod openai;
