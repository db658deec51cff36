//! Prompts out of columns: Jinja templates in which a name that is not there is an error.

use std::collections::BTreeSet;
use std::path::Path;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use promptq_common::line::closest;
use serde_json::{Map, Value as Json};

use super::rows::Fault;
use crate::problem::{Exit, Problem, Result};

/// The most steps one rendering may take: a loop over some 100,000 items; beyond it a template does not end in
/// reasonable time.
const FUEL: u64 = 1_000_000;

/// A template, checked and ready.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    names: BTreeSet<String>,
    /// The whole of it, where it is nothing but text and names.
    pieces: Option<Vec<Piece>>,
}

/// A piece of a template that does nothing.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(String),
}

impl Template {
    /// The template that a flag names: a file, or the text itself.
    pub(super) fn from_flag(flag: &str, text: &str) -> Result<Self> {
        let source = source(flag, text)?;
        Self::compile(source).map_err(|error| {
            let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
            Problem::new(Exit::Usage, "template", format!("{flag} is not a template: {line}{}", said(&error)))
        })
    }

    fn compile(source: String) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(|out, state, value| {
            if value.is_none() {
                return Err(Error::new(ErrorKind::UndefinedError, "a value is null"));
            }
            minijinja::escape_formatter(out, state, value)
        });
        environment.add_template_owned(NAME, source)?;
        let names = environment.get_template(NAME)?.undeclared_variables(false).into_iter().collect();
        let pieces = pieces(environment.get_template(NAME)?.source(), &names);
        Ok(Self { environment, names, pieces })
    }

    /// Whether it uses a variable of this name.
    pub(super) fn uses(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The prompt for a row, where the template is nothing but text and names, and each stands for a text of the row.
    pub(super) fn fill(&self, columns: &Map<String, Json>) -> Option<String> {
        let mut prompt = String::new();
        for piece in self.pieces.as_ref()? {
            prompt.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Name(name) => columns.get(name)?.as_str()?,
            });
        }
        Some(prompt)
    }

    /// The prompt for a row of these columns.
    pub(super) fn render(&self, columns: &Value) -> Result<String, Fault> {
        let template = self.environment.get_template(NAME).map_err(|error| Fault::new(said(&error)))?;
        template.render(columns.clone()).map_err(|error| self.fault(&error, columns))
    }

    fn fault(&self, error: &Error, columns: &Value) -> Fault {
        if error.kind() == ErrorKind::OutOfFuel {
            return Fault::new(format!("the template takes more than {FUEL} steps for this row"));
        }
        let there: Vec<String> =
            columns.try_iter().map(|names| names.map(|name| name.to_string()).collect()).unwrap_or_default();
        let missing = self.names.iter().find(|name| !there.contains(name));
        match missing {
            Some(name) if error.kind() == ErrorKind::UndefinedError => {
                let known: Vec<&str> = there.iter().map(String::as_str).filter(|name| *name != "row").collect();
                let fault =
                    Fault::new(format!("\"{{{{ {name} }}}}\" is not in the data; columns: {}", known.join(", ")));
                match closest(name, known.iter().copied()) {
                    Some(near) => fault.hint(format!("did you mean {{{{ {near} }}}}?")),
                    None => fault.hint("name one of the columns, or set it with --var"),
                }
            }
            _ => {
                let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
                Fault::new(format!("the template fails{line}: {}", said(error)))
            }
        }
    }
}

/// A template of texts and of `{{ name }}` alone, in pieces; `None` for any other. `names` are those it asks for.
fn pieces(source: &str, names: &BTreeSet<String>) -> Option<Vec<Piece>> {
    if source.contains("{%") || source.contains("{#") {
        return None;
    }
    // As the language has it: the last line's end is not part of the text.
    let source = source.strip_suffix('\n').unwrap_or(source);
    let mut rest = source.strip_suffix('\r').unwrap_or(source);
    let mut pieces = Vec::new();
    while let Some((text, behind)) = rest.split_once("{{") {
        let (name, after) = behind.split_once("}}")?;
        let name = name.trim_ascii();
        if !names.contains(name) {
            return None;
        }
        pieces.extend([Piece::Text(text.to_owned()), Piece::Name(name.to_owned())]);
        rest = after;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Some(pieces)
}

const NAME: &str = "template";

/// A file's content when there is such a file; text that is plainly a path to none is an error.
pub(super) fn source(flag: &str, text: &str) -> Result<String> {
    let path = Path::new(text);
    if text.len() < 4_096 && path.is_file() {
        return std::fs::read_to_string(path).map_err(|error| super::source::unreadable(text, &error));
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if !text.contains(char::is_whitespace)
        && !text.contains("{{")
        && ["txt", "md", "j2", "jinja", "jinja2", "tmpl"].contains(&ending)
    {
        return Err(Problem::new(Exit::Usage, "unreadable", format!("{flag} {text}: there is no such file")));
    }
    Ok(text.to_owned())
}

fn said(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, columns: &serde_json::Value) -> Result<String, Fault> {
        Template::compile(template.to_owned()).unwrap().render(&Value::from(minijinja::value::Serde(columns)))
    }

    #[test]
    fn columns_fill_the_template_unescaped() {
        let columns = serde_json::json!({"text": "<a> & \"b\"", "n": 2, "tags": ["x", "y"]});
        assert_eq!(render("{{ text }} {{ n + 1 }} {{ tags | join('+') }}", &columns).unwrap(), "<a> & \"b\" 3 x+y");
        assert_eq!(render("{{ nope | default('-') }}", &columns).unwrap(), "-");
    }

    #[test]
    fn a_template_of_names_alone_is_filled_as_it_would_be_rendered() {
        let columns = serde_json::json!({"text": "<a> & {{ n }}\r\n", "true": "t", "n": 2, "b c": "d", "é": "f"});
        let filled = |template: &str| {
            let compiled = Template::compile(template.to_owned()).unwrap();
            compiled.fill(columns.as_object().unwrap()).inspect(|filled| {
                assert_eq!(render(template, &columns).as_ref(), Ok(filled), "{template:?}");
            })
        };
        let simple = ["", "plain", "a\n", "a\n\n", "a\r\n", "a\r", "\n", "{ {text}}", "Of: {{text}}", "{{ text }}\n"];
        for template in simple.into_iter().chain(["}} %} {{text}}{{\ntext\t}} #}\r\n", "{{text}}\r\n\r\n"]) {
            assert!(filled(template).is_some(), "{template:?}");
        }
        for other in
            ["{{ n }}", "{{ true }}", "{{ text | upper }}", "{{- text }}", "{{ text -}} ", "{% if n %}{% endif %}"]
        {
            assert_eq!(filled(other), None, "{other:?}");
        }
        assert_eq!(filled("{# {{ text }} #}{{ text }}"), None);
        assert_eq!(filled("{{ text }}{{ gone }}"), None);
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_with_a_suggestion() {
        let fault = render("{{ titel }}", &serde_json::json!({"id": 1, "text": "", "title": ""})).unwrap_err();
        assert_eq!(fault.what, "\"{{ titel }}\" is not in the data; columns: id, text, title");
        assert_eq!(fault.hint.as_deref(), Some("did you mean {{ title }}?"));
        assert!(render("{{ a.b }}", &serde_json::json!({"a": {}})).is_err());
        assert!(render("{{ a }}", &serde_json::json!({"a": null})).is_err());
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let fault = render(
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            &serde_json::json!({}),
        );
        assert!(fault.unwrap_err().what.contains("steps"));
    }

    #[test]
    fn a_path_to_nothing_is_not_a_prompt() {
        assert!(source("-t", "prompts/none.j2").is_err());
        assert_eq!(source("-t", "Hello {{name}}").unwrap(), "Hello {{name}}");
    }
}
