//! What the settings say of the calls that workers make: whether all that these need is there, and whether anybody wrote
//! down what they run.

use super::error::{ConfigErrors, Origin};
use super::{Config, Setting};

impl Config {
    /// Whether providers can be called: for whoever is about to. All others do without their keys.
    ///
    /// # Errors
    /// The keys that were named and cannot be had, each with its place.
    pub fn callable(&self) -> Result<(), ConfigErrors> {
        if self.keyless.is_empty() { Ok(()) } else { Err(ConfigErrors(self.keyless.clone())) }
    }

    /// Whether somebody wrote down here what workers run: models, providers or commands, in a file or in a variable of
    /// promptq's own. A key in its usual variable says little: other programs have it there too.
    pub fn says_what_runs(&self) -> bool {
        self.settings.iter().any(|setting| {
            let is_written = match &setting.origin {
                Origin::File { .. } | Origin::Flag(_) => true,
                Origin::Env(name) => name.starts_with("PROMPTQ"),
                Origin::Default => false,
            };
            is_written && is_of_calls(setting)
        })
    }
}

fn is_of_calls(setting: &Setting) -> bool {
    ["models.", "providers.", "runners."].iter().any(|section| setting.name.starts_with(section))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests;

    fn given(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        tests::given(&[("/etc/promptq.toml", text)], env, &[])
    }

    #[test]
    fn a_key_that_cannot_be_had_is_missed_by_callers_alone() {
        const BOX: &str = "[providers.box]\nbase_url = \"http://box/v1\"\napi_key = ";
        let missing = |text: &str, env: &[(&str, &str)]| {
            let config = given(text, env).unwrap();
            let shown = config.settings.iter().find(|setting| setting.name.ends_with("api_key")).cloned();
            (config.callable().unwrap_err().to_string(), shown.map(|setting| setting.value))
        };
        for (key, says) in [
            ("{ env = \"NONE\" }", "the variable NONE is not set"),
            ("{ file = \"gone\" }", "cannot read gone: entity not found"),
        ] {
            let (errors, shown) = missing(&format!("{BOX}{key}"), &[]);
            assert!(errors.starts_with("/etc/promptq.toml:3:") && errors.ends_with(says), "{errors}");
            assert_eq!(shown, Some(serde_json::Value::Null));
        }
        let (errors, _) = missing("", &[("OPENAI_API_KEY_FILE", "/gone")]);
        assert!(errors.starts_with("env OPENAI_API_KEY_FILE: cannot read /gone"), "{errors}");
        let config = given(&format!("{BOX}{{ env = \"MINE\" }}"), &[("MINE", "k")]).unwrap();
        assert!(config.callable().is_ok() && config.providers["box"].api_key.is_some());
        // Beside what is wrong for everybody it is told with that; so is what could never be a key.
        let both = given(&format!("{BOX}{{ env = \"NONE\" }}\n[limits.box]\nadaptive = true"), &[]).unwrap_err();
        assert!(both.contains("NONE is not set") && both.contains("limits.box.requests is missing"), "{both}");
        assert!(
            given(&format!("{BOX}{{ env = \"A\", file = \"b\" }}"), &[]).unwrap_err().contains("both env and file")
        );
        let broker = "broker.url = \"redis://h\"\nbroker.password = { env = \"NONE\" }";
        assert!(given(broker, &[]).unwrap_err().contains("NONE is not set"), "nothing goes without the broker");
    }

    #[test]
    fn what_runs_is_said_in_files_and_not_by_a_key_for_other_programs() {
        let says = |text: &str, env: &[(&str, &str)]| given(text, env).unwrap().says_what_runs();
        assert!(!says("", &[]) && !says("[worker]\nlease = \"1m\"", &[("ANTHROPIC_API_KEY", "k")]));
        for text in [
            "[models.fast]\nprovider = \"openai\"",
            "[runners.upper]\nargv = [\"tr\"]",
            "[providers.box]\nbase_url = \"http://box/v1\"",
        ] {
            assert!(says(text, &[]), "{text}");
        }
        assert!(says("", &[("PROMPTQ__PROVIDERS__OPENAI__API_KEY", "k")]));
    }
}
