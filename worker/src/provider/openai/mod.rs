//! OpenAI's API and the servers that speak it.

pub(crate) mod answer;
pub(crate) mod failure;
pub(crate) mod request;

/// The endpoints served; their answers differ in shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/responses`
    Responses,
    /// `/v1/embeddings`
    Embeddings,
}

impl Endpoint {
    /// The endpoint of a request's url, as an OpenAI batch line names it.
    pub(crate) fn of(url: &str) -> Option<Self> {
        match url {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/responses" => Some(Self::Responses),
            "/v1/embeddings" => Some(Self::Embeddings),
            _ => None,
        }
    }

    /// Its path below a base URL that ends with the version.
    pub(crate) const fn path(self) -> &'static [&'static str] {
        match self {
            Self::Chat => &["chat", "completions"],
            Self::Responses => &["responses"],
            Self::Embeddings => &["embeddings"],
        }
    }
}
