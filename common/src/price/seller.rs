//! Whose prices a provider has: told by where it is, since any server may speak an API and call its models as it likes.

use url::Url;

/// Somebody whose prices are known, or who tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seller {
    /// `OpenAI` itself.
    OpenAi,
    /// Anthropic itself.
    Anthropic,
    /// Google's Gemini API.
    Gemini,
    /// Tells with each answer what it cost.
    OpenRouter,
}

impl Seller {
    /// Who is behind a base URL. Addresses of one region are nobody's: they may cost more.
    pub fn at(base_url: &str) -> Option<Self> {
        match Url::parse(base_url).ok()?.host_str()? {
            "api.openai.com" => Some(Self::OpenAi),
            "api.anthropic.com" => Some(Self::Anthropic),
            "generativelanguage.googleapis.com" => Some(Self::Gemini),
            "openrouter.ai" => Some(Self::OpenRouter),
            _ => None,
        }
    }

    /// Who a provider is by its name alone.
    pub fn named(provider: &str) -> Option<Self> {
        match provider {
            "openai" => Some(Self::OpenAi),
            "anthropic" => Some(Self::Anthropic),
            "gemini" => Some(Self::Gemini),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_address_is_a_seller() {
        for (url, seller) in [
            ("https://api.openai.com/v1", Some(Seller::OpenAi)),
            ("https://api.anthropic.com/v1/", Some(Seller::Anthropic)),
            ("https://generativelanguage.googleapis.com/v1beta", Some(Seller::Gemini)),
            ("https://openrouter.ai/api/v1", Some(Seller::OpenRouter)),
            ("https://eu.api.openai.com/v1", None),
            ("http://127.0.0.1:8081/v1", None),
            ("https://api.openai.com.example/v1", None),
            ("nonsense", None),
        ] {
            assert_eq!(Seller::at(url), seller, "{url}");
        }
    }
}
