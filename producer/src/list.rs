//! How lists are shown: chosen columns on a screen, whole objects in JSON, and never cut short in silence.

use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::printer::Format;
use crate::problem::{Problem, Result};

/// A list, or the first part of one.
#[derive(Debug)]
pub struct List {
    /// Each item as a JSON object.
    pub items: Vec<Value>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// A column: its heading and the cell of an item.
pub type Column = (&'static str, fn(&Value) -> String);

impl List {
    /// A list that is whole.
    pub fn whole(items: Vec<Value>) -> Self {
        Self { items, next: None }
    }

    /// Prints it: `columns` on a screen unless `fields` names others; in JSON whole items unless `fields` names keys.
    pub fn print(self, cx: &Context, columns: &[Column], fields: &[String]) -> Result<()> {
        let mut pages = Pages::new(cx, columns, fields);
        pages.add(&self.items)?;
        pages.end(self.next.as_deref())
    }
}

/// A list that is printed a page at a time, so that its length costs no memory.
#[derive(Debug)]
pub struct Pages<'a> {
    cx: &'a Context,
    columns: &'a [Column],
    fields: &'a [String],
    begun: bool,
    shown: usize,
}

impl<'a> Pages<'a> {
    /// Nothing is printed yet; as [`List::print`].
    pub fn new(cx: &'a Context, columns: &'a [Column], fields: &'a [String]) -> Self {
        Self { cx, columns, fields, begun: false, shown: 0 }
    }

    /// How many items were printed.
    pub fn shown(&self) -> usize {
        self.shown
    }

    /// Prints some more.
    pub fn add(&mut self, items: &[Value]) -> Result<()> {
        let cells = chosen(items, self.columns, self.fields)?;
        let printer = &self.cx.printer;
        match printer.format() {
            Format::Json => {
                let mut text = if self.begun { String::new() } else { "{\n  \"items\": [".to_owned() };
                for (at, item) in items.iter().enumerate() {
                    text += if self.shown + at > 0 { ",\n    " } else { "\n    " };
                    text += &format!("{:#}", narrowed(item, self.fields)).replace('\n', "\n    ");
                }
                printer.data(text.as_bytes())?;
            }
            Format::Jsonl => {
                items.iter().try_for_each(|item| printer.json(&narrowed(item, self.fields)))?;
            }
            Format::Table | Format::Plain => {
                let headings: Vec<String> = cells.iter().map(|(name, _)| name.to_uppercase()).collect();
                let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
                let row = |item: &Value| cells.iter().map(|(_, cell)| cell(item)).collect();
                let headings = if self.begun { None } else { Some(headings.as_slice()) };
                printer.table(headings, &items.iter().map(row).collect::<Vec<_>>())?;
            }
        }
        self.begun = true;
        self.shown += items.len();
        Ok(())
    }

    /// Ends it, and says where it goes on. At least one page, even an empty one, has been added.
    pub fn end(self, next: Option<&str>) -> Result<()> {
        let printer = &self.cx.printer;
        if printer.format() == Format::Json {
            let close = if self.shown > 0 { "\n  ]" } else { "]" };
            let truncated = next.is_some();
            printer
                .line(&format!("{close},\n  \"next_cursor\": {},\n  \"truncated\": {truncated}\n}}", json!(next)))?;
        }
        if let Some(next) = next {
            let shown = self.shown;
            printer.say(&format!("showing {shown}, more follow (--cursor {next}, or --limit 0 for all)"));
        }
        Ok(())
    }
}

type Cell<'a> = (&'a str, Box<dyn Fn(&Value) -> String + 'a>);

/// The columns to show. A field that no item has is a usage problem that names those there are.
fn chosen<'a>(items: &'a [Value], columns: &'a [Column], fields: &'a [String]) -> Result<Vec<Cell<'a>>> {
    if fields.is_empty() {
        return Ok(columns
            .iter()
            .map(|(name, cell)| (*name, Box::new(cell) as Box<dyn Fn(&Value) -> String>))
            .collect());
    }
    let keys: Vec<&str> = items
        .first()
        .and_then(Value::as_object)
        .map_or_else(Vec::new, |first| first.keys().map(String::as_str).collect());
    let mut cells: Vec<Cell<'a>> = Vec::new();
    for field in fields {
        let column = columns.iter().find(|(name, _)| name == field);
        match column {
            Some((name, cell)) => cells.push((name, Box::new(cell))),
            None if keys.contains(&field.as_str()) || items.is_empty() => {
                cells.push((field, Box::new(|item: &Value| text(item.get(field.as_str())))));
            }
            None => {
                let known: Vec<_> = keys.iter().copied().chain(columns.iter().map(|(name, _)| *name)).collect();
                let problem = Problem::usage(format!("there is no field {field:?}"));
                let near = known.iter().find(|name| strsim::osa_distance(name, field) <= 2);
                return Err(match near {
                    Some(near) => problem.hint(format!("did you mean {near}?")),
                    None => problem.hint(format!("there are {}", keys.join(", "))),
                });
            }
        }
    }
    Ok(cells)
}

fn narrowed(item: &Value, fields: &[String]) -> Value {
    if fields.is_empty() {
        return item.clone();
    }
    let pick = |field: &String| (field.clone(), item.get(field).cloned().unwrap_or(Value::Null));
    Value::Object(fields.iter().map(pick).collect::<Map<_, _>>())
}

/// A JSON value as a cell: text bare, nothing as a dash.
pub fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A key's value as a cell.
pub fn cell(item: &Value, key: &str) -> String {
    text(item.get(key))
}

/// A time key as a cell: how long ago it was, or how far off.
pub fn ago(item: &Value, key: &str) -> String {
    use promptq_common::time::{Timestamp, format_duration};
    let Some(at) = item.get(key).and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok()) else {
        return "-".to_owned();
    };
    let now = Timestamp::now();
    if at > now {
        return format!("in {}", format_duration(at.since(now)));
    }
    format!("{} ago", format_duration(now.since(at)))
}

/// A whole number with its thousands apart: `4,812`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':');
    if word.bytes().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[("id", |item| cell(item, "id"))];

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 4_812, 1_234_567].map(thousands), ["0", "999", "1,000", "4,812", "1,234,567"]);
    }

    #[test]
    fn fields_choose_columns_and_keys_and_nothing_else() {
        let items = [json!({ "id": 1, "state": "dead" })];
        let fields = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let chosen_names = |names: &[&str]| {
            let fields = fields(names);
            let cells = chosen(&items, COLUMNS, &fields).map_err(|problem| problem.to_string())?;
            Ok::<_, String>(cells.iter().map(|(name, cell)| format!("{name}={}", cell(&items[0]))).collect::<Vec<_>>())
        };
        assert_eq!(chosen_names(&[]).unwrap(), ["id=1"]);
        assert_eq!(chosen_names(&["state", "id"]).unwrap(), ["state=dead", "id=1"]);
        assert!(chosen_names(&["sate"]).unwrap_err().contains("did you mean state?"));
        assert_eq!(narrowed(&items[0], &fields(&["state"])), json!({ "state": "dead" }));
    }

    #[test]
    fn a_word_for_a_shell_is_quoted_where_it_has_to_be() {
        assert_eq!((quoted("batch:a/b-1"), quoted("it's")), ("batch:a/b-1".into(), r"'it'\''s'".into()));
    }
}
