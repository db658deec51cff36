//! Which rules count for a call: its account's, and of those that are for models the one with the longest name that fits.
//! A `gpt-4o-mini` with a rule of its own is no `gpt-4o`; both are their account's.

use std::sync::Arc;

use super::amount::Cap;
use crate::broker::HoldKey;

/// What a limit key may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `provider`, or `provider/model` for every model that begins so.
    pub key: String,
    /// Its caps; none: it has no limits.
    pub caps: Vec<Cap>,
    /// Whether a provider's header may raise them.
    pub adaptive: bool,
}

/// Whether a rule of this key is for jobs with that key of provider and model.
pub fn covers(rule_key: &str, limit_key: &str) -> bool {
    if rule_key.contains('/') { limit_key.starts_with(rule_key) } else { limit_key.split('/').next() == Some(rule_key) }
}

/// Whether a name that people have for something in the way of jobs means what is kept under a key: itself, all models of
/// a provider, or those models whose name begins so. Money of a batch or a queue is meant by its whole name alone.
pub fn means(name: &str, key: &str) -> bool {
    let is_money = |key: &str| !matches!(HoldKey::of_limit(key), HoldKey::Limit(_));
    name == key || (!is_money(name) && !is_money(key) && covers(name, key))
}

/// Those of these keys of rules that count for jobs with that key of provider and model: the model's, then the account's.
pub fn counting<K: AsRef<str>>(keys: impl IntoIterator<Item = K>, limit_key: &str) -> [Option<K>; 2] {
    let [mut model, mut account] = [None, None];
    for key in keys.into_iter().filter(|key| covers(key.as_ref(), limit_key)) {
        let length = |key: &K| key.as_ref().len();
        if !key.as_ref().contains('/') {
            account = Some(key);
        } else if model.as_ref().is_none_or(|known| length(known) < length(&key)) {
            model = Some(key);
        }
    }
    [model, account]
}

/// The keys of the rules that count for a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules([Option<Arc<str>>; 2]);

impl Rules {
    /// Those of `all` that count for jobs with this key of provider and model.
    pub(super) fn of<'a>(all: impl Iterator<Item = &'a Arc<str>>, limit_key: &str) -> Self {
        Self(counting(all, limit_key).map(|key| key.map(Arc::clone)))
    }

    /// The narrowest first: the order in which they are asked.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().flatten()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Each with the narrower one that counts beside it.
    pub(super) fn nested(&self) -> impl Iterator<Item = (&Arc<str>, Option<&Arc<str>>)> {
        let [model, account] = [&self.0[0], &self.0[1]];
        model.iter().map(|key| (key, None)).chain(account.iter().map(|key| (key, model.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_itself_a_providers_models_or_those_that_begin_so() {
        for (name, key, is_meant) in [
            ("acme", "acme", true),
            ("acme", "acme/gpt", true),
            ("acme/gpt", "acme/gpt-4o", true),
            ("acme/gpt", "acme", false),
            ("acme", "acme2/gpt", false),
            ("batch:a", "batch:a", true),
            ("batch:a", "batch:a/b", false),
            ("budget:x/", "budget:x/y", false),
        ] {
            assert_eq!(means(name, key), is_meant, "{name} {key}");
        }
    }

    #[test]
    fn an_account_counts_for_all_its_models_and_of_models_the_longest_name_that_fits() {
        let keys = ["openai", "openai/gpt-4o", "openai/gpt-4o-mini", "mock", "acme/x"].map(Arc::<str>::from);
        for (limit_key, found) in [
            ("openai/gpt-4o-mini", "openai/gpt-4o-mini openai"),
            ("openai/gpt-4o", "openai/gpt-4o openai"),
            ("openai/gpt-4o-audio", "openai/gpt-4o openai"),
            ("openai/o3", "openai"),
            ("openai2/o3", ""),
            ("acme/xl", "acme/x"),
            ("mock", "mock"),
        ] {
            let rules = Rules::of(keys.iter().rev(), limit_key);
            assert_eq!(rules.iter().map(|key| &**key).collect::<Vec<_>>().join(" "), found, "{limit_key}");
            assert_eq!(rules.is_empty(), found.is_empty());
        }
        let both = Rules::of(keys.iter(), "openai/gpt-4o");
        let nested: Vec<_> = both.nested().map(|(key, inside)| (&**key, inside.map(|key| &**key))).collect();
        assert_eq!(nested, [("openai/gpt-4o", None), ("openai", Some("openai/gpt-4o"))]);
    }
}
