//! Section `runners.NAME`: commands by name, and how each says that its account's usage limit is reached.

use std::collections::BTreeMap;
use std::fmt;

use super::reader::Reader;

/// A command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// How it says that its account's usage limit is reached; what nobody said is not looked for.
    pub limit_texts: Option<LimitTexts>,
}

/// How a program says that its account's usage limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitTexts {
    /// With the last words of a run that failed.
    Text,
    /// Also with the last record of its standard output, which is JSON of the program's own making however the run ended.
    Json,
}

impl LimitTexts {
    fn parse(text: &str) -> Result<Self, String> {
        let all = [Self::Text, Self::Json];
        all.into_iter().find(|known| known.to_string() == text).ok_or_else(|| "must be \"text\" or \"json\"".to_owned())
    }
}

impl fmt::Display for LimitTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

pub(super) fn runners(r: &mut Reader<'_>) -> BTreeMap<String, Command> {
    let mut runners = BTreeMap::new();
    for name in r.names("runners") {
        let path = ["runners", name.as_str(), "argv"];
        let errors = r.errors.len();
        let argv = r.list(&path).unwrap_or_default();
        if argv.is_empty() && r.errors.len() == errors {
            r.wrong(&path, "must name a program, such as [\"wc\", \"-w\"]");
        }
        let limit_texts = r.parsed(&["runners", name.as_str(), "limit_texts"], None, LimitTexts::parse);
        runners.insert(name, Command { argv, limit_texts });
    }
    runners
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::given;

    #[test]
    fn limits_are_looked_for_where_somebody_said_how() {
        let said = |more: &str| {
            let text = format!("[runners.agent]\nargv = [\"agent\", \"-p\"]\n{more}");
            given(&[("/etc/promptq.toml", &text)], &[], &[]).map(|config| config.runners["agent"].limit_texts)
        };
        assert_eq!(said(""), Ok(None));
        assert_eq!(said("limit_texts = \"text\""), Ok(Some(LimitTexts::Text)));
        assert_eq!(said("limit_texts = \"json\""), Ok(Some(LimitTexts::Json)));
        for wrong in ["\"yes\"", "\"JSON\"", "true"] {
            let error = said(&format!("limit_texts = {wrong}")).unwrap_err();
            assert!(error.contains("/etc/promptq.toml:3:15: runners.agent.limit_texts must be "), "{error}");
        }
    }
}
